"""`protocol.augment`: crops and mirror images of training batches agree with padding and slicing image by image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.cli import main
from optbench.data import Dataset, Split
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.gradients.feed import Feed
from optbench.suite.protocol import Protocol
from optbench.suite.schema import TaskSettings
from optbench.tasks import Examples, TaskFamily
from optbench.tasks.permuted import permute_pixels
from optbench.tasks.rotated import rotate
from tests.conftest import same_bits, small_suite, train_suite
from tests.engine.test_interim import cut_and_whole
from tests.twin import train_twin

AUGMENT = {"crop": 2, "flip": True}
CPU = torch.device("cpu")
TASKS: dict[str, dict[str, Any]] = {
    "class-incremental": {},
    "permuted": {"count": 2},
    "rotated": {"angles": (180.0, 30.0)},
    "random-labels": {"count": 2, "examples_per_task": 30},
}


@pytest.fixture(scope="module")
def colours() -> Dataset:
    drawn = torch.Generator().manual_seed(0)
    halves = [
        Split(torch.randint(0, 256, (n, 3, 9, 9), dtype=torch.uint8, generator=drawn), torch.arange(n) % 4)
        for n in (50, 4)
    ]
    return Dataset("colours", *halves, classes=4)


def slow(image: Tensor, way: int, crop: int) -> Tensor:
    """Mirror and crop an image (C, H, W) by combination number `way` of flip and shifts."""
    shifts = 2 * crop + 1
    flip, down, right = way // shifts**2, way // shifts % shifts, way % shifts
    image = image.flip(-1) if flip else image
    padded = nn.functional.pad(image, (crop,) * 4)
    return padded[:, down : down + image.shape[1], right : right + image.shape[2]]


@pytest.mark.parametrize("augment", [AUGMENT, {"crop": 3}, {"flip": True}], ids=str)
@pytest.mark.parametrize("kind", TASKS)
def test_augmenting_a_batch_equals_augmenting_each_image(kind: str, augment: dict[str, Any], colours: Dataset) -> None:
    """Covers both batch paths: augmenting before a permutation, and mirroring before and cropping after a rotation."""
    protocol = Protocol(batch_size=7, validation_examples=4, augment=augment)
    family = TaskFamily(TaskSettings.of(kind, **TASKS[kind]), colours, protocol, 0, CPU)
    crop, normalise = protocol.augment.crop, Normaliser.of(colours, protocol, CPU)
    for task in range(2):
        sequences = [family.sequence(seed) for seed in (0, 1)]
        streams = [BatchStream(s.train(task), 7, 0, s.trial_seed, task, augment=protocol.augment) for s in sequences]
        feed, buffer = Feed(streams, normalise), BatchBuffer(7, normalise)
        for step in range(2 * streams[0].steps_per_epoch + 1):
            feed.aim(step)
            fed = feed.take()
            for i, stream in enumerate(streams):
                expected = []
                for row, way in zip(stream.indices(step), stream.augmentation(step), strict=True):
                    if kind == "permuted":
                        p = family._kind.permutation(sequences[i].trial_seed, task)
                        expected.append(permute_pixels(slow(family.parts.train.inputs[row], way, crop)[None], p)[0])
                    elif kind == "rotated" and way >= (2 * crop + 1) ** 2:
                        turned = rotate(family.parts.train.inputs[row].flip(-1)[None], TASKS[kind]["angles"][task])[0]
                        expected.append(slow(turned, way - (2 * crop + 1) ** 2, crop))
                    else:
                        expected.append(slow(stream.examples.inputs[row], way, crop))
                inputs, targets = buffer.take(stream, step)
                assert torch.equal(inputs, normalise(torch.stack(expected)))
                assert torch.equal(inputs, fed[0][i])
                assert torch.equal(targets, fed[1][i])
                assert torch.equal(targets, stream.examples.targets[stream.indices(step)])


def test_augmentations_are_equally_likely_and_redrawn_every_epoch() -> None:
    examples = Examples(torch.zeros(9000, 1, 4, 4), torch.zeros(9000, dtype=torch.int64))
    augment = Protocol(augment={"crop": 1, "flip": True}).augment
    one, same, other = (BatchStream(examples, 10, 0, seed, 0, *order, augment) for seed, order in
                        ((0, (0,)), (0, (0,)), (0, (1,))))  # fmt: skip
    counts = torch.bincount(one.ways(0), minlength=18)
    assert len(counts) == 18
    assert (counts - 500).abs().max() < 5 * 500**0.5
    assert torch.equal(one.ways(0), same.ways(0))
    assert not torch.equal(one.ways(0), one.ways(1))
    assert not torch.equal(one.ways(0), other.ways(0)), "another data order has other augmentations"


@pytest.mark.usefixtures("one_thread")
def test_augmented_training_equals_a_plain_loop_and_does_not_depend_on_companions_or_resuming(mnist: Dataset) -> None:
    settings: dict[str, Any] = {
        "metrics": ["hoyer"],
        "train_examples": 120,
        "test_examples": 50,
        "validation_examples": 50,
        "augment": AUGMENT,
    }
    optimizers = {"sgd": {"target": "sgd", "lr": 0.05}, "sam": {"target": "sam", "base": {"target": "sgd", "lr": 0.05}}}
    suite = small_suite(optimizers, seeds=2, **settings)
    results = train_suite(suite, mnist)
    assert all(same_bits(results[i], train_suite(suite, mnist, i)[0]) for i in (1, 2))
    for _, whole, again in cut_and_whole(suite, mnist):
        assert all(map(same_bits, whole, again))
    family = TaskFamily(suite.experiments["small"].tasks, mnist, suite.experiments["small"].protocol, 0, CPU)

    def batch(stream: BatchStream, step: int) -> Tensor:
        # Augment the original images and permute the pixels afterwards.
        images = family.parts.train.inputs[stream.indices(step)]
        augmented = [slow(image, way, 2) for image, way in zip(images, stream.augmentation(step), strict=True)]
        return permute_pixels(torch.stack(augmented), stream.examples.places)

    result = results[1]
    make = partial(torch.optim.SGD, lr=0.05)
    _, weights, _ = train_twin(suite, mnist, result.trial.seed, lambda net: make(net.parameters()), batch=batch)
    assert all(torch.allclose(result.weights[name], weight, atol=1e-5) for name, weight in weights.items())
    plain = train_suite(small_suite(optimizers, seeds=1, **{**settings, "augment": None}), mnist)
    assert not any(map(same_bits, plain, results[::2]))


VECTORS = """
import torch, optbench
def vectors():
    half = optbench.Split(torch.zeros(60, 5), torch.arange(60) % 2)
    return optbench.Dataset("vectors", half, half, classes=2)
"""


@pytest.mark.parametrize(
    ("dataset", "augment", "tasks", "model", "message"),
    [
        ("mnist", "{crop: 28}", "permuted", "mlp", "suite.yaml:6:32: experiments.a.protocol.augment.crop: expected"),
        ("{kind: mnist, resize: 7}", "{crop: 7}", "permuted", "mlp", "crop: expected less than the images' side (7)"),
        ("text-domains", "{flip: true}", "domains", "gpt", "protocol.augment: expected images to augment, got the"),
        ("./vectors.py:vectors", "{flip: true}", "class-incremental", "mlp", "protocol.augment: expected images of"),
        ("mnist", "{crop: 0}", "permuted", "mlp", "expected 'crop' above 0, 'flip: true' or both"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_augmented_is_refused_before_training(
    dataset: str, augment: str, tasks: str, model: str, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("vectors.py").write_text(VECTORS)
    hidden = ", hidden: [4]" if model == "mlp" else ""
    Path("suite.yaml").write_text(f"""name: a
seeds: 1
optimizers: {{sgd: {{target: sgd}}}}
experiments:
  a:
    protocol: {{augment: {augment}, validation_examples: 4}}
    dataset: {dataset}
    tasks: {{kind: {tasks}}}
    models: {{m: {{kind: {model}{hidden}}}}}
""")
    assert main(["run", "suite.yaml", *(["--dry-run"] if "vectors" not in dataset else [])]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
