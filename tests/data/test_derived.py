"""Derived datasets, and modular addition."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from optbench.cli import main
from optbench.data import Dataset, Split, load
from optbench.data.corruption import CORRUPTIONS, corrupt
from optbench.data.dataset import fault_of
from optbench.data.settings import DERIVED, DatasetSettings
from optbench.errors import DataError
from optbench.kinds import DATASETS
from optbench.suite.protocol import Protocol
from optbench.suite.schema import TaskSettings
from optbench.tasks import TaskFamily
from tests.refusals import refusal

MADE = '''
import torch
from optbench import Dataset, Split


def faces(classes: int = 3, side: int = 8, count: int = 90) -> Dataset:
    """Images of floats between -1 and 1, and as many of each class."""
    def half(seed):
        draws = torch.Generator().manual_seed(seed)
        images = 2 * torch.rand(count, 1, side, side, generator=draws) - 1
        return Split(images, torch.arange(count) % classes)

    return Dataset("faces", half(0), half(1), classes=classes)


def points() -> Dataset:
    half = Split(torch.randn(9, 4), torch.arange(9) % 3)
    return Dataset("points", half, half, classes=3)
'''


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MADE)


def made(kind: str, of: object = "mnist", **settings: object) -> Dataset:
    return load(DatasetSettings.of(kind, of=of, **settings))


def faces(**settings: object) -> dict[str, object]:
    return {"kind": "./mine.py:faces", **settings}


def same(one: Split, other: Split) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


def test_selected_classes_keep_their_examples_in_order_and_are_renumbered(mnist: Dataset) -> None:
    found = made("classes", keep=[7, 2])
    for half, whole in ((found.train, mnist.train), (found.test, mnist.test)):
        chosen = (whole.targets == 7) | (whole.targets == 2)
        assert torch.equal(half.inputs, whole.inputs[chosen])
        assert torch.equal(half.targets, (whole.targets[chosen] == 2).long())
    assert found.classes == 2
    with pytest.raises(DataError, match=r"expected distinct classes below 10, got \[1, 1\]"):
        made("classes", keep=[1, 1])
    with pytest.raises(
        ValidationError, match="keep: expected classes below 10, the number of classes of mnist, got 12"
    ):
        made("classes", keep=[1, 12])


def test_imbalanced_classes_are_a_geometric_sequence_of_one_hundred_to_one(mnist: Dataset) -> None:
    found = made("imbalanced")
    counts = torch.bincount(found.train.targets)
    smallest = torch.bincount(mnist.train.targets).min()  # 5421
    assert counts.tolist() == [5421, 3250, 1948, 1168, 700, 420, 252, 151, 90, 54]
    assert torch.equal(counts, (smallest * 100.0 ** (-torch.arange(10).double() / 9)).round().long())
    assert same(found.test, mnist.test)
    rare = found.train.inputs[found.train.targets == 9].flatten(1)
    nines = {image.numpy().tobytes() for image in mnist.train.inputs[mnist.train.targets == 9]}
    assert len({image.numpy().tobytes() for image in rare} & nines) == 54
    assert len(set(made("imbalanced", ratio=1, of=faces()).train.targets.bincount().tolist())) == 1


def test_a_share_of_labels_is_wrong_only_in_training(mnist: Dataset) -> None:
    found = made("noisy-labels", share=0.3)
    wrong = found.train.targets != mnist.train.targets
    assert int(wrong.sum()) == 18_000
    assert torch.equal(found.train.inputs, mnist.train.inputs)
    assert same(found.test, mnist.test)
    steps = (found.train.targets - mnist.train.targets)[wrong] % 10
    assert torch.bincount(steps, minlength=10)[1:].double() == pytest.approx(2000.0, rel=0.1), (
        "wrong labels are uniform over the other classes"
    )


def test_the_patch_indicates_the_label_in_training_and_another_class_at_test(mnist: Dataset) -> None:
    found = made("spurious-patch", probability=0.9, size=2)
    for half, plain in ((found.train, mnist.train), (found.test, mnist.test)):
        assert half.cues is not None
        assert torch.equal(half.targets, plain.targets)
        changed = half.inputs != plain.inputs
        assert int(changed.flatten(1).sum(1).max()) <= 4, "only a patch of 2 × 2 differs"
        places = {}
        for cue in range(10):  # the place of a class's patch: pixels that are 255 in all images with this cue
            always = (half.inputs[half.cues == cue] == 255).all(0).nonzero()
            assert len(always) == 4
            places[cue] = frozenset(map(tuple, always[:, 1:].tolist()))
        assert len(frozenset.union(*places.values())) == 40, "patches do not overlap"
    follow = found.train.cues == found.train.targets
    assert float(follow.double().mean()) == pytest.approx(0.9, abs=0.005)
    assert not bool((found.test.cues == found.test.targets).any())
    independent = made("spurious-patch", test="independent")
    assert float((independent.test.cues == independent.test.targets).double().mean()) == pytest.approx(0.1, abs=0.02)


def test_a_patch_has_the_maximum_brightness_and_many_classes_use_a_grid() -> None:
    found = made("spurious-patch", faces(classes=15, count=150), size=2, probability=1.0)
    assert torch.equal(found.train.cues, found.train.targets)
    top = float(load(DatasetSettings.of("./mine.py:faces", classes=15, count=150)).train.inputs.max())
    bright = (found.train.inputs == top).flatten(1)
    distinct = {tuple(row.nonzero().flatten().tolist()) for row in bright[:15]}
    assert len(distinct) == 15
    with pytest.raises(DataError, match="expected room for 3 patches in 8 × 8, got room for 1 of 7 × 7"):
        made("spurious-patch", faces(), size=7)


def test_cues_stay_with_their_examples_in_parts_and_tasks(mnist: Dataset) -> None:
    data = made("spurious-patch")
    protocol = Protocol(validation_examples=59_000, test_examples=500)
    family = TaskFamily(TaskSettings.of("permuted", count=2), data, protocol, 0, torch.device("cpu"))
    by_image = {image.numpy().tobytes(): int(cue) for image, cue in zip(data.test.inputs, data.test.cues, strict=True)}
    plain, task = family.parts.test, family.sequence(0).test(1)
    assert plain.cues is not None
    assert [by_image[image.numpy().tobytes()] for image in plain.inputs] == plain.cues.tolist()
    assert task.cues is plain.cues
    some = torch.tensor([3, 1])
    assert torch.equal(task.select(some).cues, plain.cues[some])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupted_images_agree_with_their_definition_and_are_reproducible(mnist: Dataset, corruption: str) -> None:
    images = mnist.test.inputs[:300]
    found = corrupt(images, corruption, torch.Generator().manual_seed(1))
    assert found.dtype == torch.uint8
    assert torch.equal(found, corrupt(images, corruption, torch.Generator().manual_seed(1)))
    name, severity = corruption.split("-")
    before, after = images.double() / 255, found.double() / 255
    if name == "noise":
        grey = torch.full((200, 1, 28, 28), 0.5)
        grey[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the range
        noise = (corrupt(grey, corruption, torch.Generator().manual_seed(1)) - grey)[1:]
        within = float((noise.abs() < 0.1).double().mean())
        assert within == pytest.approx(math.erf(0.1 / float(severity) / 2**0.5), abs=0.01)
        assert float(noise.abs().max()) <= 0.5
    elif name == "shift":
        by, images = int(severity), torch.nn.functional.pad(images, (4,) * 4)
        found = corrupt(images, corruption, torch.Generator().manual_seed(1))
        moves = [torch.roll(images, (dy, dx), (2, 3)) for dy, dx in ((by, 0), (-by, 0), (0, by), (0, -by))]
        # Rolling moves only the black border across the edge.
        chosen = [[torch.equal(one[i], found[i]) for one in moves] for i in range(len(images))]
        assert all(map(any, chosen))
        assert all(sum(row[k] for row in chosen) > 40 for k in range(4)), "in each direction"
    elif name == "contrast":
        mean = before.mean((2, 3), keepdim=True)
        assert torch.allclose(after, mean + float(severity) * (before - mean), atol=0.51 / 255)
    else:
        spot = torch.zeros(1, 1, 15, 15)
        spot[0, 0, 7, 7] = 1
        window = corrupt(spot, corruption, torch.Generator())[0, 0].double()
        place = torch.arange(15) - 7
        variance = float((window.sum(1) * place**2).sum() / window.sum())
        assert variance == pytest.approx(1.0, abs=0.03)
        assert torch.allclose(window, window.T)


def test_only_test_data_is_corrupted(mnist: Dataset) -> None:
    found, other = made("corrupted", corruption="noise-0.2"), made("corrupted", corruption="noise-0.2", seed=1)
    assert same(found.train, mnist.train)
    assert torch.equal(found.test.targets, mnist.test.targets)
    assert not same(found.test, mnist.test)
    assert not same(found.test, other.test)


def test_modular_addition_has_every_sum_once() -> None:
    data = load(DatasetSettings.of("modular-addition", train_share=0.3))
    inputs, targets = (torch.cat([getattr(h, n) for h in (data.train, data.test)]) for n in ("inputs", "targets"))
    assert (len(data.train), len(data.test)) == (2823, 6586)
    a, b = inputs[:, :97].argmax(1), inputs[:, 97:].argmax(1)
    assert torch.equal(inputs.sum(1), torch.full((9409,), 2.0))
    assert len({*zip(a.tolist(), b.tolist(), strict=True)}) == 9409
    assert torch.equal(targets, (a + b) % 97)
    assert data.mean == (0.0,)
    assert data.std == (1.0,)
    assert not same(data.train, load(DatasetSettings.of("modular-addition", train_share=0.3, seed=1)).train)


SETTINGS = {"classes": {"keep": [2, 0]}, "corrupted": {"corruption": "blur-1"}}


@pytest.mark.parametrize("kind", DERIVED)
def test_derived_datasets_are_as_announced_and_satisfy_the_contract(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DatasetSettings.of(kind, of={"kind": "noisy-labels", "of": "mnist"}, **SETTINGS.get(kind, {}))
    data, known = load(settings), settings.known
    assert known is not None
    assert (known.classes, known.shape) == (data.classes, data.inputs.shape)
    assert known.train_size in (None, len(data.train))
    assert known.test_size in (None, len(data.test))
    assert [one.kind for one in settings.chain] == [kind, "noisy-labels", "mnist"]
    assert DatasetSettings.model_validate(settings.model_dump()) == settings
    assert (DATASETS.load(kind).__doc__ or "").strip()
    again = load(settings)
    assert same(again.train, data.train)
    assert same(again.test, data.test)
    words = [f"{key}={value}" for key, value in SETTINGS.get(kind, {}).items()]
    assert main(["check", kind, *(w for word in ("of=./mine.py:faces", *words) for w in ("--set", word))]) == 0
    assert "bit-identical when made twice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "place", "message"),
    [
        ("{kind: imbalanced}", "7:14", "dataset: expected the key 'of'"),
        ("{kind: imbalanced, of: mnits}", "7:37", "dataset.of: unknown dataset 'mnits'; did you mean 'mnist'?"),
        (
            "{kind: noisy-labels, of: {kind: imbalanced, of: mnist, ratoi: 3}}",
            "7:69",
            "dataset.of: unknown key 'ratoi'; did you mean 'ratio'?",
        ),
        ("{kind: corrupted, of: mnist, corruption: noise}", "7:55", "corruption: unknown choice 'noise'"),
        ("{kind: imbalanced, of: text-domains}", "7:21", "of: expected a dataset of examples with one label each"),
        (
            "{kind: spurious-patch, of: modular-addition}",
            "7:21",
            "of: expected a dataset of images, got modular-addition",
        ),
        ("{kind: imbalanced, of: ./gone.py:faces}", "7:37", "./gone.py"),
        ("{kind: corrupted, of: ./mine.py:points, corruption: blur-1}", "", "of: expected images of shape (C, H, W)"),
    ],
)
def test_invalid_settings_are_refused_with_their_place(
    dataset: str, place: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(
        f"""
name: derived
seeds: 1
optimizers: {{sgd: {{target: sgd, lr: 0.1}}}}
experiments:
  one:
    dataset: {dataset}
    tasks: {{kind: permuted, count: 1}}
    models: {{net: {{kind: mlp}}}}
"""[1:].replace("name: derived", "name: derived\n", 1)
    )
    said = refusal(capsys, tmp_path, "run", "suite.yaml")
    assert message in said
    assert re.search(rf":{place}:", said) or not place


def test_cues_must_match_their_examples() -> None:
    inputs, targets = torch.zeros(3, 2), torch.arange(3)
    for cues, said in ((torch.zeros(3), "float32"), (torch.zeros(2).long(), "(2,)"), (torch.arange(3) + 1, "1..3")):
        fault = fault_of(Split(inputs, targets, cues), 3, None)
        assert fault is not None
        assert said in fault


@pytest.mark.parametrize(
    "written",
    [
        {"kind": "imbalanced"},
        {"kind": "classes", "of": "mnist"},
        {"kind": "corrupted", "of": {"kind": 3}},
        {"kind": "spurious-patch", "of": [1]},
        {"kind": "modular-addition", "modulus": "many"},
    ],
)
def test_unchecked_settings_have_no_known_sizes(written: dict[str, object]) -> None:
    """Such settings occur if the suite of a run was edited."""
    found = DatasetSettings.as_written(written)
    assert found.known is None
    assert next(found.chain) == found
