"""Metrics of trained networks in a run: cues, corruption, transfer, classes, and learning speed."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from optbench.data import load
from optbench.data.corruption import CORRUPTIONS
from optbench.engine.batches import Normaliser
from optbench.engine.corrupted import corrupter
from optbench.engine.transfer import Transfer
from optbench.metrics import select, take
from optbench.metrics.measuring import Features
from optbench.metrics.prediction import accuracy_of, corruption_accuracy, cue_following
from optbench.metrics.reaching import Curve, Reached, steps_to_accuracy
from optbench.metrics.trained import Model
from optbench.metrics.transfer import Labelled, Probe, transfer_accuracy
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.tasks import Examples, TaskFamily
from optbench.tasks.permuted import permute_pixels
from tests.conftest import report, run_file
from tests.refusals import refusal

pytestmark = pytest.mark.usefixtures("_train_here")
torch.set_num_threads(1)

SUITE = """
name: trained
seeds: 1
optimizers: {sgd: {target: sgd, lr: 0.1}}
experiments:
  shortcut:
    dataset: {kind: spurious-patch, of: {kind: mnist, resize: 14}, size: 2, probability: 1.0}
    transfer: {kind: classes, of: {kind: mnist, resize: 14}, keep: [3, 5, 8]}
    tasks: {kind: permuted, count: 1}
    models: {linear: {kind: mlp, hidden: []}}
    protocol: {batch_size: 32, max_epochs: 4, early_stopping: null, train_examples: 1280, test_examples: 300,
               validation_examples: 100}
    metrics: [cue_following, transfer_accuracy, worst_class_accuracy, corruption_accuracy, steps_to_accuracy,
              {kind: corruption_accuracy, corruption: blur-1}, {kind: steps_to_accuracy, accuracy: 1.0},
              quantised_drop_8]
    primary: [corruption_accuracy]
claims:
  early: {experiment: shortcut, metric: steps_to_accuracy, left: sgd, right: 100, expect: lower}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_file(tmp_path_factory.mktemp("trained"), SUITE)


def test_a_linear_network_follows_the_patch_and_other_metrics_agree_with_its_checkpoint(path: Path) -> None:
    table = pd.read_parquet(path / "metrics.parquet")
    found = table[(table.after_task == 1) & table.task.isna()].set_index("metric")["value"].to_dict()
    (file,) = (path / "checkpoints").glob("**/*.safetensors")
    weights = load_file(file)
    network = nn.Sequential(nn.Flatten(), nn.Linear(196, 10))
    network.load_state_dict({"1.weight": weights["head.weight"], "1.bias": weights["head.bias"]})
    experiment = read_results(read_run(path)).suite.experiments["shortcut"]
    data, cpu = load(experiment.dataset), torch.device("cpu")
    sequence = TaskFamily(experiment.tasks, data, experiment.protocol, 0, cpu).sequence(0)
    normalise, test = Normaliser.of(data, experiment.protocol, cpu), sequence.test(0)
    assert test.places is not None
    predicted = network(normalise(test.inputs)).argmax(1)

    assert found["cue_following"] == pytest.approx(float((predicted == test.cues).double().mean()), abs=1e-12)
    assert found["cue_following"] > 0.9, "a known extreme: the patch is the easiest cue"
    assert found["quantised_drop_8"] < 0.002, "a known extreme"

    # Images are corrupted before their pixels are permuted.
    plain = torch.empty_like(test.inputs).flatten(2)
    plain[:, :, test.places] = test.inputs.flatten(2)
    made = corrupter(Examples(plain.view_as(test.inputs), test.targets), 0, normalise, 0)
    assert made is not None
    accuracies = {
        name: accuracy_of(network, permute_pixels(made(name), test.places), test.targets) for name in CORRUPTIONS
    }
    assert found["corruption_accuracy"] == pytest.approx(sum(accuracies.values()) / 9, abs=0.002)
    assert found["corruption_accuracy corruption=blur-1"] == pytest.approx(accuracies["blur-1"], abs=0.004)

    classes = pd.read_parquet(path / "classes.parquet")
    of_all = classes[classes.task.isna()].set_index("label")
    assert of_all.examples.tolist() == torch.bincount(test.targets).tolist()
    shares = [float((predicted == c)[test.targets == c].double().mean()) for c in range(10)]
    assert of_all.accuracy.tolist() == pytest.approx(shares, abs=0.04)
    assert found["worst_class_accuracy"] == of_all.accuracy.min()
    assert set(classes.columns) > {"trial", "stage", "after_task"}

    # Three classes from the pixels: recomputed from the seed of the suite, and much better than guessing.
    assert experiment.transfer is not None
    other = load(experiment.transfer)
    parts = Transfer.of(other, 0, cpu).parts
    train, validation, rest = (Labelled(normalise(part.inputs).flatten(1), part.targets) for part in parts)
    assert found["transfer_accuracy"] == transfer_accuracy(Probe(train, validation, rest, other.classes))
    assert 0.75 < found["transfer_accuracy"] < 1.0

    of_task = table[(table.after_task == 1) & (table.task == 1)].set_index("metric")
    curve = pd.read_parquet(path / "curves.parquet")
    first = curve[curve.eval_accuracy >= 0.95].step.min()
    assert of_task.value["steps_to_accuracy"] == first
    if not (curve.eval_accuracy == 1.0).any():
        assert of_task.value["steps_to_accuracy accuracy=1"] == curve.step.max()
        assert of_task.note["steps_to_accuracy accuracy=1"] == "an accuracy of 1 was not reached; this is a lower bound"


def test_measures_agree_with_worked_examples() -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 5], [1, 0, 0]])
    assert cue_following(logits, torch.tensor([0, 0, 2, 0])) == 0.75
    curve = Curve([10, 20, 30], [0.2, None, 0.96])
    assert steps_to_accuracy(curve) == Reached(30, None)
    assert steps_to_accuracy(curve, accuracy=0.97).value == 30
    assert steps_to_accuracy(Curve([10, 20], [0.95, 0.1])).value == 10


def test_a_network_that_uses_only_the_mean_is_robust_to_contrast() -> None:
    """Contrast keeps the mean of every image, while noise changes it."""
    means = torch.tensor([0.2, 0.8] * 20)
    images = (means[:, None, None, None] + 0.1 * torch.randn(40, 1, 6, 6, generator=torch.manual_seed(0))).clamp(0, 1)
    targets = (means > 0.5).long()

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], 1)

    normalise = Normaliser(torch.tensor(1.0), torch.tensor(0.0), 1.0)
    examples = Examples(images, targets)
    reading = Model(Mean(), normalise(images), targets, corrupter(examples, 0, normalise, 3))
    for corruption in ("contrast-0.25", "blur-1"):
        assert corruption_accuracy(reading.corrupted, corruption=corruption) == 1.0
    once, again = corrupter(examples, 0, normalise, 3), corrupter(examples, 1, normalise, 3)
    assert once is not None
    assert again is not None
    assert torch.equal(once("noise-0.1"), once("noise-0.1"))
    assert not torch.equal(once("noise-0.1"), again("noise-0.1")), "tasks have different noise"


def test_undefined_values_have_a_note() -> None:
    inputs, targets = torch.randn(8, 3), torch.arange(8) % 2
    examples = Examples(inputs, targets)
    normalise = Normaliser(torch.tensor(1.0), torch.tensor(0.0), 1.0)
    assert corrupter(examples, 0, normalise, 0) is None
    (found,) = take(select(["corruption_accuracy"]), Model(nn.Linear(3, 2), inputs, targets))
    assert found.note == "expected images of shape (C, H, W)"
    (found,) = take(select(["cue_following"]), Features(inputs, targets, torch.eye(2)[targets]))
    assert found.note == "expected data with cues, as in the dataset spurious-patch"


OTHER = "    transfer: {kind: classes, of: {kind: mnist, resize: 14}, keep: [3, 5, 8]}\n"


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ("", "transfer_accuracy: expected the key 'transfer'"),
        (OTHER.replace("3, 5, 8", "13"), "keep: expected classes below 10, the number of classes of mnist, got 13"),
        ("    transfer: mnist\n", "transfer: expected inputs like those of spurious-patch mnist, uint8 (1, 14, 14)"),
    ],
)
def test_invalid_transfer_is_refused(
    instead: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert OTHER in SUITE
    (tmp_path / "suite.yaml").write_text(SUITE.replace(OTHER, instead))
    assert message in refusal(capsys, tmp_path, "run", "suite.yaml")


def test_reports_show_every_metric_that_a_suite_lists(path: Path) -> None:
    results = read_results(read_run(path))
    listed = {entry.name for entry in results.suite.experiments["shortcut"].metrics or ()}
    (trial,) = results.trials
    assert {name for name in listed if not math.isfinite(results.values.get(name, {}).get(trial.id, math.nan))} == set()


def test_the_terminal_shows_primary_metrics_and_those_of_claims(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report(path, "terminal", capsys)
    values = read_results(read_run(path)).values
    (corrupted,) = values["corruption_accuracy"].values()
    (steps,) = values["steps_to_accuracy"].values()
    (row,) = [line for line in text.splitlines() if line.startswith("sgd") and f"{corrupted:.3f}" in line]
    assert row.split()[-1] == f"{steps:.0f}"
    assert "- corruption accuracy: " in text
    assert "worst class" not in text, "neither primary nor in a claim"
