"""Measures of predictions: worked examples, plain counts, bounds and invariances."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from optbench.data import Dataset
from optbench.metrics import select, take
from optbench.metrics.measuring import Features, Pooled
from optbench.metrics.prediction import (
    accuracy_of,
    balanced_accuracy,
    calibration_error,
    class_hits,
    quantised,
    quantised_drop,
    worst_class_accuracy,
)
from optbench.metrics.trained import Model
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.tasks.examples import split_dataset
from tests.conftest import run_file

torch.set_num_threads(1)

OF_CLASSES = ("worst_class_accuracy", "balanced_accuracy", "calibration_error")


def draws(seed: int, examples: int = 500, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(examples, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes - 1, (examples,), generator=generator)  # the last class never occurs


def of_two(*first: float) -> Tensor:
    """Return logits of two classes, the first with these probabilities."""
    p = torch.tensor(first, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


def test_measures_agree_with_worked_examples() -> None:
    assert float(calibration_error(of_two(0.9, 0.6, 0.55, 0.2), torch.tensor([0, 1, 0, 1]))) == pytest.approx(0.1125)
    weight = torch.tensor([-1, -0.4, 0.1, 0.24, 0.7], dtype=torch.float64)
    torch.testing.assert_close(quantised(weight, 3) * 3, torch.tensor([-3.0, -1, 0, 1, 2], dtype=torch.float64))
    torch.testing.assert_close(quantised(weight, 4) * 7, torch.tensor([-7.0, -3, 1, 2, 5], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_measures_agree_with_plain_counts(seed: int) -> None:
    logits, targets = draws(seed)
    right, all_, bins = Counter[int](), Counter[int](), dict[int, list[tuple[float, int]]]()
    for row, label in zip(logits.softmax(-1).tolist(), targets.tolist(), strict=True):
        guess = row.index(max(row))
        all_[label] += 1
        right[label] += guess == label
        bins.setdefault(math.ceil(15 * max(row)), []).append((max(row), guess == label))
    shares = [right[label] / all_[label] for label in all_]
    gaps = [abs(sum(hit for _, hit in found) - sum(p for p, _ in found)) for found in bins.values()]
    hits = class_hits(logits, targets)
    assert float(worst_class_accuracy(hits)) == pytest.approx(min(shares))
    assert float(balanced_accuracy(hits)) == pytest.approx(sum(shares) / 6)
    assert float(calibration_error(logits, targets)) == pytest.approx(sum(gaps) / 500)


def test_a_confident_network_is_calibrated_only_if_it_is_right() -> None:
    targets = torch.arange(6) % 3
    sure = 1000 * nn.functional.one_hot(targets, 3).double()
    assert float(calibration_error(sure, targets)) == 0
    assert float(calibration_error(sure, (targets + 1) % 3)) == 1
    assert float(calibration_error(torch.zeros(6, 3), targets)) == pytest.approx(0, abs=1e-7)


def test_pooled_tasks_equal_their_pooled_examples() -> None:
    parts = [draws(seed) for seed in range(3)]
    logits, targets = (torch.cat(found) for found in zip(*parts, strict=True))
    metrics = select(OF_CLASSES)
    pooled = take(metrics, Pooled([Features(own, labels, own) for own, labels in parts]))
    assert pooled == take(metrics, Features(logits, targets, logits))


def test_undefined_values_have_a_note() -> None:
    logits, targets = draws(0)
    text = {m.metric: m for m in take(select(OF_CLASSES), Features(logits, targets, logits, classes=False))}
    assert text["worst_class_accuracy"].note == "expected classes, got the tokens of a text"
    assert text["balanced_accuracy"].value is None
    assert text["calibration_error"].value == float(calibration_error(logits, targets))
    empty = take(select(OF_CLASSES), Features(logits[:0], targets[:0], logits[:0]))
    assert {(m.value, m.note) for m in empty} == {(None, "no examples")}
    broken = take(select(["calibration_error"]), Features(logits, targets, logits / 0))
    assert [m.note for m in broken] == ["the logits are not finite"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_quantisation_is_symmetric_keeps_the_maximum_and_has_the_stated_levels(bits: int) -> None:
    weight = draws(1)[0]
    found = quantised(weight, bits)
    assert len(found.unique()) <= 2**bits - 1
    assert float((found - weight).abs().max()) <= float(weight.abs().max()) / (2 ** (bits - 1) - 1) / 2 * (1 + 1e-12)
    torch.testing.assert_close(quantised(-weight, bits), -found, rtol=0, atol=0)
    torch.testing.assert_close(quantised(found, bits), found)
    assert found.flatten()[weight.abs().argmax()] == weight.flatten()[weight.abs().argmax()]
    torch.testing.assert_close(quantised(4 * weight, bits), 4 * found, rtol=0, atol=0)


def test_quantisation_keeps_zeros_and_non_finite_values() -> None:
    assert not quantised(torch.zeros(3, 2), 4).any()
    assert quantised(torch.tensor([[math.inf, 1.0]]), 4).tolist() == [[math.inf, 1.0]]
    with pytest.raises(ValueError, match=r"^expected at least 2 bits, got 1$"):
        quantised(torch.ones(2), 1)


def test_the_quantisation_drop_uses_only_weights_and_leaves_the_network_unchanged() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3000, 6, generator=generator)
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    targets = network(inputs).argmax(-1)
    by_hand = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).eval()
    by_hand.load_state_dict({**before, "0.weight": quantised(before["0.weight"], 3)})
    expected = 1 - float((by_hand(inputs).argmax(-1) == targets).double().mean())
    assert expected > 0.02
    metrics = select(["quantised_drop_8", "quantised_drop_3"])
    drops = {m.metric: m.value for m in take(metrics, Model(network, inputs, targets))}
    assert drops["quantised_drop_3"] == pytest.approx(expected, abs=1e-12)
    assert quantised_drop(network, inputs, targets, 1.0, bits=16) <= drops["quantised_drop_8"] < expected
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_run_agrees_with_its_checkpoint(tmp_path: Path, mnist: Dataset) -> None:
    path = run_file(
        tmp_path,
        """
name: rounded
seeds: 1
optimizers: {sgd: {target: sgd, lr: 0.1}}
experiments:
  halves:
    tasks: {kind: class-incremental, group_size: 5}
    models: {net: {kind: mlp, hidden: [12]}}
    protocol: {batch_size: 32, max_epochs: 1, early_stopping: null, train_examples: 640, test_examples: 400,
               validation_examples: 100}
    metrics: [quantised_drop_3, worst_class_accuracy, balanced_accuracy, calibration_error]
""",
    )
    table = pd.read_parquet(path / "metrics.parquet").query("after_task == 2").fillna({"task": 0})
    found = table.set_index(["metric", "task"])["value"]
    (file,) = (path / "checkpoints").glob("**/*.safetensors")
    weights = load_file(file)
    network = nn.Sequential(nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10))
    names = ("layers.0.weight", "layers.0.bias", "head.weight", "head.bias")
    network.load_state_dict(dict(zip(network.state_dict(), map(weights.get, names), strict=True)))
    suite = read_results(read_run(path)).suite
    test = split_dataset(mnist, suite.experiments["halves"].protocol, suite.seed, torch.device("cpu")).test
    inputs = (test.inputs.flatten(1).float() / 255 - 0.1307) / 0.3081
    logits, drops = network(inputs).detach(), []
    shares = torch.tensor([(logits.argmax(1) == c)[test.targets == c].double().mean() for c in range(10)])
    for task, half in ((1, test.targets < 5), (2, test.targets >= 5), (0, test.targets >= 0)):
        own = shares if not task else shares[5 * task - 5 : 5 * task]
        # Another order of summation may break a tie between two classes differently.
        assert found["worst_class_accuracy", task] == pytest.approx(float(own.min()), abs=0.04)
        assert found["balanced_accuracy", task] == pytest.approx(float(own.mean()), abs=0.005)
        expected = float(calibration_error(logits[half], test.targets[half]))
        assert found["calibration_error", task] == pytest.approx(expected, abs=0.005)
        dense = accuracy_of(network, inputs[half], test.targets[half])
        drops.append(quantised_drop(network, inputs[half], test.targets[half], dense, bits=3))
        assert found["quantised_drop_3", task] == pytest.approx(drops[-1] if task else sum(drops[:2]) / 2, abs=0.005)
    assert any(drops)
    assert float(shares.min()) < float(shares.mean())
