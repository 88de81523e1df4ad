"""Task sequences: properties of every kind, and the transformation of images by each kind."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.data import Dataset, Split
from optbench.errors import UsageError
from optbench.suite.protocol import Protocol
from optbench.suite.schema import TaskSettings
from optbench.tasks import Examples, TaskFamily, TaskSequence
from optbench.tasks.examples import PARTS
from optbench.tasks.permuted import permute_pixels
from optbench.tasks.rotated import rotate

torch.set_num_threads(1)
CPU = torch.device("cpu")
CLASSES = 6
KINDS: dict[str, TaskSettings] = {
    "permuted": TaskSettings.of("permuted", count=3),
    "permuted shared": TaskSettings.of("permuted", count=3, permutations="shared"),
    "permuted after identity": TaskSettings.of("permuted", count=3, first="identity"),
    "permuted, drawn": TaskSettings.of("permuted", count=3, examples_per_task=20),
    "random labels": TaskSettings.of("random-labels", count=3, examples_per_task=20, images="per-task"),
    "class-incremental": TaskSettings.of("class-incremental", group_size=2),
    "class-incremental shuffled": TaskSettings.of("class-incremental", group_size=2, order="shuffled"),
    "rotated": TaskSettings.of("rotated", angles=[0, 30, 90]),
}


def dataset(shape: tuple[int, int, int] = (1, 6, 6), train: int = 90, test: int = 42) -> Dataset:
    """Return a dataset of distinct random images whose classes follow each other cyclically."""
    draw = np.random.default_rng(0)

    def split(size: int) -> Split:
        images = torch.from_numpy(draw.integers(0, 256, (size, *shape), dtype=np.uint8))
        return Split(images, torch.arange(size) % CLASSES)

    return Dataset("toy", split(train), split(test), CLASSES, (0.5,), (0.25,))


DATA = dataset()
PROTOCOL = Protocol(validation_examples=30)


def family(tasks: TaskSettings, data: Dataset = DATA, protocol: Protocol = PROTOCOL, suite_seed: int = 0) -> TaskFamily:
    return TaskFamily(tasks, data, protocol, suite_seed, CPU)


def parts(sequence: TaskSequence, task: int) -> list[Examples]:
    return [sequence.train(task), sequence.validation(task), sequence.test(task)]


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


# --- every kind ---


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_have_the_documented_form(kind: str) -> None:
    tasks = family(KINDS[kind])
    assert tasks.count == len(tasks.task_names) == 3
    assert (tasks.classes, tasks.inputs.shape) == (CLASSES, (1, 6, 6))
    for task in range(tasks.count):
        for examples in parts(tasks.sequence(0), task):
            assert examples.inputs.dtype == torch.uint8
            assert examples.targets.dtype == torch.int64
            assert examples.inputs.shape == (len(examples), 1, 6, 6)
            assert examples.inputs.is_contiguous()
            assert len(examples) == len(examples.targets) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_equal_keys_give_the_same_arrays_and_different_keys_different_ones(kind: str) -> None:
    tasks = family(KINDS[kind])
    held = [(tasks.sequence(seed).key(task), parts(tasks.sequence(seed), task)) for seed in (0, 1) for task in range(3)]
    for key, one in held:
        for other_key, other in held:
            if key == other_key:
                assert all(a is b for a, b in zip(one, other, strict=True))
            else:
                assert rows(one[0].inputs) != rows(other[0].inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_families_of_the_same_suite_make_equal_arrays(kind: str) -> None:
    # Families are built per process and device, so their arrays must not depend on earlier requests.
    one, other = family(KINDS[kind]), family(KINDS[kind])
    other.sequence(5).train(2)
    for task in (2, 0, 1):
        for a, b in zip(parts(one.sequence(3), task), parts(other.sequence(3), task), strict=True):
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("kind", ["permuted", "class-incremental shuffled"])
def test_draws_per_seed_differ_between_trial_seeds_and_suite_seeds(kind: str) -> None:
    tasks = family(KINDS[kind])
    keys = {tuple(tasks.sequence(seed).key(task) for task in range(3)) for seed in range(8)}
    # Six classes in pairs have only 90 orders, so two of eight seeds may well agree.
    assert len(keys) >= (8 if kind == "permuted" else 6)
    first = tasks.sequence(0)
    elsewhere = family(KINDS[kind], suite_seed=1).sequence(0)
    assert any(rows(first.test(task).inputs) != rows(elsewhere.test(task).inputs) for task in range(3))


@pytest.mark.parametrize("kind", ["permuted shared", "class-incremental", "rotated"])
def test_shared_draws_are_equal_for_all_trial_seeds(kind: str) -> None:
    tasks = family(KINDS[kind])
    for task in range(3):
        assert tasks.sequence(0).key(task) == tasks.sequence(1).key(task)
        assert tasks.sequence(0).train(task) is tasks.sequence(1).train(task)


@pytest.mark.parametrize("kind", KINDS)
def test_making_tasks_does_not_change_the_dataset(kind: str) -> None:
    data = dataset()
    tasks = family(KINDS[kind], data)
    for task in range(3):
        parts(tasks.sequence(0), task)
    assert torch.equal(data.train.inputs, DATA.train.inputs)
    assert torch.equal(data.test.inputs, DATA.test.inputs)


# --- tasks on a part of the training examples ---


def test_a_drawn_task_is_an_ordered_subset_with_complete_held_out_parts() -> None:
    drawn, whole = family(KINDS["permuted, drawn"]), family(KINDS["permuted"])
    for seed, task in [(0, 0), (0, 2), (4, 1)]:
        part, full = drawn.sequence(seed), whole.sequence(seed)
        kept, every = ([image.tobytes() for image in s.train(task).inputs.numpy()] for s in (part, full))
        places = [every.index(image) for image in kept]
        assert len(places) == 20
        assert places == sorted(set(places))
        assert torch.equal(part.train(task).targets, full.train(task).targets[places])
        assert torch.equal(part.validation(task).inputs, full.validation(task).inputs)
        assert torch.equal(part.test(task).inputs, full.test(task).inputs)


def test_every_seed_and_task_draws_different_examples() -> None:
    tasks = family(TaskSettings.of("permuted", count=3, examples_per_task=20, permutations="shared"))
    # A permutation keeps the sum of an image, which identifies random images.
    drawn = [
        frozenset(tasks.sequence(seed).train(task).inputs.sum((1, 2, 3)).tolist()) for seed in (0, 1) for task in (0, 1)
    ]
    assert len(set(drawn)) == 4


def test_random_labels_are_uniform_and_differ_between_tasks() -> None:
    tasks = family(TaskSettings.of("random-labels", count=200, examples_per_task=60), suite_seed=3)
    sequence = tasks.sequence(0)
    counts = torch.zeros(CLASSES)
    for task in range(tasks.count):
        train, validation, test = parts(sequence, task)
        assert torch.equal(train.inputs, tasks.parts.train.inputs)  # the images are drawn once: all 60 in order
        for held_out in (validation, test):
            assert torch.equal(held_out.inputs, train.inputs)
            assert torch.equal(held_out.targets, train.targets)
        counts += torch.bincount(train.targets, minlength=CLASSES)
    # Of 12,000 draws each label has 2,000 with standard deviation 41.
    assert (counts - 2000).abs().max() < 5 * 41
    assert not torch.equal(sequence.train(0).targets, sequence.train(1).targets)
    assert not torch.equal(sequence.train(0).targets, tasks.sequence(1).train(0).targets)


def test_images_of_random_labels_are_drawn_once_or_for_every_task() -> None:
    chosen = {}
    for images in ("once", "per-task"):
        sequence = family(TaskSettings.of("random-labels", count=4, examples_per_task=20, images=images)).sequence(2)
        chosen[images] = [sequence.train(task).inputs for task in range(4)]
    assert all(torch.equal(chosen["once"][0], other) for other in chosen["once"])
    assert len({frozenset(rows(inputs)) for inputs in chosen["per-task"]}) == 4


@pytest.mark.parametrize("kind", ["permuted", "random-labels"])
def test_a_task_with_more_examples_than_available_is_a_usage_error(kind: str) -> None:
    with pytest.raises(UsageError, match=r"examples_per_task: expected at most 60, .* got 61"):
        family(TaskSettings.of(kind, examples_per_task=61))


def test_arrays_of_hundreds_of_tasks_are_freed() -> None:
    tasks = family(TaskSettings.of("permuted", count=300, examples_per_task=20))
    held = []
    for task in range(tasks.count):
        held += [weakref.ref(examples) for examples in parts(tasks.sequence(0), task)]
    gc.collect()
    assert len(held) == 900
    assert not any(ref() is not None for ref in held)
    assert not tasks._kept


# --- the split ---


def test_train_and_validation_partition_the_training_half() -> None:
    plain = family(KINDS["rotated"]).parts
    train, validation = rows(plain.train.inputs), rows(plain.validation.inputs)
    assert (len(train), len(validation)) == (60, 30)
    assert train.isdisjoint(validation)
    assert train | validation == rows(DATA.train.inputs)
    assert torch.equal(plain.test.inputs, DATA.test.inputs)
    label_of = {image.numpy().tobytes(): int(y) for image, y in zip(DATA.train.inputs, DATA.train.targets, strict=True)}
    for part in (plain.train, plain.validation):
        assert [label_of[image.numpy().tobytes()] for image in part.inputs] == part.targets.tolist()


def test_the_split_depends_only_on_the_suite_seed() -> None:
    held_out = [rows(family(KINDS[kind], suite_seed=4).parts.validation.inputs) for kind in KINDS]
    assert all(examples == held_out[0] for examples in held_out)
    assert rows(family(KINDS["rotated"], suite_seed=5).parts.validation.inputs) != held_out[0]


def test_subsets_are_nested_and_do_not_change_the_validation_examples() -> None:
    def of(**changes: int) -> dict[str, set[bytes]]:
        plain = family(KINDS["rotated"], protocol=PROTOCOL.model_copy(update=changes)).parts
        return {part: rows(plain[part].inputs) for part in PARTS}

    whole, larger, smaller = of(), of(train_examples=40, test_examples=20), of(train_examples=10, test_examples=7)
    assert [len(larger[part]) for part in PARTS] == [40, 30, 20]
    assert [len(smaller[part]) for part in PARTS] == [10, 30, 7]
    assert whole["validation"] == larger["validation"] == smaller["validation"]
    for part in ("train", "test"):
        assert smaller[part] < larger[part] < whole[part]
    everything = of(train_examples=60, test_examples=42)
    assert everything == whole


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (
            Protocol(validation_examples=90),
            "validation_examples: expected at most 89, .* the 90 training .* remain, got 90",
        ),
        (Protocol(validation_examples=5000), "validation_examples: expected at most 89, .* got 5000"),
        (
            Protocol(validation_examples=30, train_examples=61),
            "train_examples: expected at most 60, .* train .* after .*, got 61",
        ),
        (
            Protocol(validation_examples=30, test_examples=43),
            "test_examples: expected at most 42, the number of test examples .* got 43",
        ),
    ],
)
def test_more_examples_than_available_are_a_usage_error(protocol: Protocol, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^protocol\.{message}"):
        family(KINDS["permuted"], protocol=protocol)


# --- permuted ---


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 5)])
def test_a_permutation_is_one_bijection_for_all_images_channels_and_parts(shape: tuple[int, int, int]) -> None:
    data = dataset(shape)
    tasks = family(KINDS["permuted"], data)
    plain, sequence = tasks.parts, tasks.sequence(2)
    for task in range(3):
        # The bijection recovered from one set of images must explain all others.
        before, after = (examples.inputs[:, 0].flatten(1).T for examples in (plain.train, sequence.train(task)))
        place_of = {column.numpy().tobytes(): place for place, column in enumerate(before)}
        found = [place_of[column.numpy().tobytes()] for column in after]
        assert sorted(found) == list(range(shape[1] * shape[2]))
        assert found != sorted(found)
        for source, shuffled in zip((plain[part] for part in PARTS), parts(sequence, task), strict=True):
            assert torch.equal(shuffled.inputs.flatten(2), source.inputs.flatten(2)[:, :, found])
            assert torch.equal(shuffled.targets, source.targets)


def test_the_permutations_of_a_sequence_differ() -> None:
    sequence = family(KINDS["permuted"]).sequence(0)
    assert len({sequence.test(task).inputs.numpy().tobytes() for task in range(3)}) == 3


def test_identity_first_keeps_the_images_of_task_1_and_the_other_permutations() -> None:
    plain, identity = family(KINDS["permuted"]), family(KINDS["permuted after identity"])
    assert identity.task_names == ["identity", "permutation 2", "permutation 3"]
    assert plain.task_names == ["permutation 1", "permutation 2", "permutation 3"]
    assert identity.sequence(1).train(0) is identity.parts.train
    for task in (1, 2):
        assert torch.equal(identity.sequence(1).test(task).inputs, plain.sequence(1).test(task).inputs)


def test_a_longer_sequence_starts_like_a_shorter_one() -> None:
    longer = family(TaskSettings.of("permuted", count=5)).sequence(0)
    shorter = family(KINDS["permuted"]).sequence(0)
    for task in range(3):
        assert torch.equal(longer.test(task).inputs, shorter.test(task).inputs)


def test_permuted_arrays_are_freed_when_no_longer_referenced() -> None:
    tasks = family(KINDS["permuted"])
    examples = tasks.sequence(0).train(1)
    watch = weakref.ref(examples)
    assert tasks.sequence(0).train(1) is examples
    del examples
    gc.collect()
    assert watch() is None


@given(st.integers(0, 10), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_permute_pixels_agrees_with_plain_indexing(n: int, c: int, h: int, w: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    images = torch.from_numpy(draw.integers(0, 256, (n, c, h, w), dtype=np.uint8))
    permutation = torch.from_numpy(draw.permutation(h * w))
    result = permute_pixels(images, permutation)
    assert torch.equal(result, images.flatten(2)[..., permutation].reshape(images.shape))
    assert torch.equal(permute_pixels(result, permutation.argsort()), images)


# --- class-incremental ---


@pytest.mark.parametrize("kind", ["class-incremental", "class-incremental shuffled"])
def test_class_incremental_tasks_partition_every_part(kind: str) -> None:
    tasks = family(KINDS[kind])
    for seed in range(3):
        sequence = tasks.sequence(seed)
        for i, part in enumerate(PARTS):
            pieces = [parts(sequence, task)[i] for task in range(3)]
            assert sum(map(len, pieces)) == len(tasks.parts[part])
            assert set().union(*(rows(piece.inputs) for piece in pieces)) == rows(tasks.parts[part].inputs)
            groups = [set(piece.targets.tolist()) for piece in pieces]
            assert sum(map(len, groups)) == len(set().union(*groups)) == CLASSES


def test_fixed_groups_follow_the_class_order_and_keep_their_labels() -> None:
    tasks = family(KINDS["class-incremental"])
    assert tasks.task_names == ["classes 0,1", "classes 2,3", "classes 4,5"]
    for task in range(3):
        for examples in parts(tasks.sequence(7), task):
            assert set(examples.targets.tolist()) == {2 * task, 2 * task + 1}


def test_data_is_split_before_classes_are_grouped() -> None:
    grouped, plain = family(KINDS["class-incremental"]), family(KINDS["permuted"]).parts
    for part in PARTS:
        assert torch.equal(grouped.parts[part].inputs, plain[part].inputs)
    keep = plain.validation.targets // 2 == 1
    assert torch.equal(grouped.sequence(0).validation(1).inputs, plain.validation.inputs[keep])


def test_shuffled_groups_mix_classes_and_have_names_without_them() -> None:
    tasks = family(KINDS["class-incremental shuffled"])
    assert tasks.task_names == ["group 1", "group 2", "group 3"]
    groups = {frozenset(tasks.sequence(seed).test(task).targets.tolist()) for seed in range(10) for task in range(3)}
    assert len(groups) > 3


def test_one_group_of_all_classes_is_a_single_task_with_a_short_name() -> None:
    tasks = family(TaskSettings.of("class-incremental", group_size=6))
    assert tasks.task_names == ["classes 0-5"]
    assert rows(tasks.sequence(0).train(0).inputs) == rows(tasks.parts.train.inputs)


@pytest.mark.parametrize("size", [4, 5, 7, 100])
def test_groups_that_do_not_divide_the_classes_are_a_usage_error(size: int) -> None:
    with pytest.raises(UsageError, match=rf"tasks\.group_size: 6 classes .* groups of {size}; valid: 1, 2, 3, 6"):
        family(TaskSettings.of("class-incremental", group_size=size))


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_a_task_without_examples_is_a_usage_error_before_training(order: str) -> None:
    tasks = TaskSettings.model_validate({"kind": "class-incremental", "group_size": 1, "order": order})
    for part, protocol in (
        ("validation", Protocol(validation_examples=3)),
        ("train", Protocol(validation_examples=30, train_examples=2)),
        ("test", Protocol(validation_examples=30, test_examples=1)),
    ):
        with pytest.raises(UsageError, match=rf"^protocol\.{part}_examples: none of the .* {part} examples .* empty"):
            family(tasks, protocol=protocol)


# --- rotated ---


def test_rotated_tasks_rotate_all_parts_by_their_angle() -> None:
    tasks = family(TaskSettings.of("rotated", angles=[0, 30, 90, -90, 12.5]))
    assert tasks.task_names == ["0 degrees", "30 degrees", "90 degrees", "-90 degrees", "12.5 degrees"]
    sequence = tasks.sequence(0)
    assert sequence.train(0) is tasks.parts.train
    for task, angle in enumerate([0, 30, 90, -90, 12.5]):
        for before, after in zip((tasks.parts[part] for part in PARTS), parts(sequence, task), strict=True):
            assert torch.equal(after.inputs, rotate(before.inputs, angle))
            assert torch.equal(after.targets, before.targets)


def test_a_quarter_turn_is_counter_clockwise_and_exact() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert rotate(image, 90).tolist() == [[[[2, 4], [1, 3]]]]
    assert rotate(image, -90).tolist() == [[[[3, 1], [4, 2]]]]
    assert torch.equal(rotate(image, 270), rotate(image, -90))


def test_four_quarter_turns_and_whole_turns_change_nothing() -> None:
    turned = DATA.train.inputs
    for _ in range(4):
        turned = rotate(turned, 90)
        assert turned.is_contiguous()
    assert torch.equal(turned, DATA.train.inputs)
    for angle in (0, 360, -360, 720):
        assert torch.equal(rotate(DATA.train.inputs, angle), DATA.train.inputs)


def test_opposite_multiples_of_ninety_undo_each_other() -> None:
    for angle in (90, 180, 270):
        assert torch.equal(rotate(rotate(DATA.train.inputs, angle), -angle), DATA.train.inputs)


@pytest.mark.parametrize("angle", [1.0, 30.0, 45.0, 100.0, 200.0, 345.0])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 12), (2, 9, 4)])
def test_rotation_agrees_with_scipy(angle: float, shape: tuple[int, int, int]) -> None:
    images = dataset(shape, train=3).train.inputs
    # Positive angles in SciPy rotate from the first axis (rows) to the second (columns), which looks counter-clockwise.
    expected = scipy.ndimage.rotate(
        images.numpy().astype(float), angle, axes=(2, 3), reshape=False, order=1, mode="grid-constant"
    )
    found = rotate(images, angle).numpy()
    assert np.abs(found - expected).max() < 0.51


def test_an_image_alone_is_rotated_as_among_others() -> None:
    images = dataset(train=4100).train.inputs
    together = rotate(images, 33)
    for i in (0, 1, 4095, 4096, 4099):
        assert torch.equal(rotate(images[i : i + 1], 33), together[i : i + 1])


def test_pixels_from_outside_are_zero_and_a_constant_centre_stays_constant() -> None:
    white = torch.full((1, 1, 21, 21), 255, dtype=torch.uint8)
    turned = rotate(white, 45)[0, 0]
    assert turned[0, 0] == turned[0, -1] == turned[-1, 0] == turned[-1, -1] == 0
    assert (turned[7:14, 7:14] == 255).all()


def made(inputs: torch.Tensor, targets: torch.Tensor) -> Dataset:
    return Dataset("made", Split(inputs, targets), Split(inputs, targets), CLASSES)


def test_a_permutation_also_permutes_vectors() -> None:
    values = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    tasks = family(KINDS["permuted"], made(values, torch.arange(90) % CLASSES))
    sequence = tasks.sequence(0)
    plain, moved = tasks.parts.train.inputs, sequence.train(1).inputs
    assert not torch.equal(plain, moved)
    assert torch.equal(plain.sort(1).values, moved.sort(1).values)
    order = [int((plain[0] == value).nonzero()) for value in moved[0]]
    assert torch.equal(plain[:, order], moved)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (
            "rotated",
            made(torch.zeros(90, 5), torch.arange(90) % CLASSES),
            "expected uint8 images (C, H, W), got float32 (5,)",
        ),
        *(
            (kind, made(torch.zeros(90, 4).long(), torch.zeros(90, 4).long()), "expected one target for each example")
            for kind in ("permuted", "class-incremental")
        ),
    ],
)
def test_data_that_does_not_fit_a_kind_is_refused(kind: str, data: Dataset, message: str) -> None:
    with pytest.raises(UsageError) as error:
        family(KINDS[kind], data)
    assert str(error.value).startswith(f"tasks.kind: {message}")
