"""Measures of neural collapse: a worked example, plain sums, the collapsed state, and invariances."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from optbench.metrics import METRICS, take
from optbench.metrics.collapse import Collapse, class_margin, nc0, nc1, nc2_angle, nc2_norm, nc3, nc4
from optbench.metrics.measuring import OfTraining
from tests.conftest import run_file

ALL = (nc0, nc1, nc2_norm, nc2_angle, nc3, nc4)
OURS = [metric for metric in METRICS.values() if metric.kind == "collapse"]


def draws(seed: int = 0, examples: int = 90, width: int = 8, classes: int = 4) -> Collapse:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(examples, width, generator=generator, dtype=torch.float64)
    targets = torch.arange(examples) % (classes - 1) + (torch.arange(examples) % (classes - 1) > 1)  # never class 2
    head = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    logits = features @ head.T
    return Collapse(features + targets[:, None], targets, logits.argmax(1), head, logits)


def plainly(of: Collapse) -> list[float]:
    """Compute the measures class by class with NumPy's pseudo-inverse."""
    assert of.head is not None
    h, y, w, guess = of.features.numpy(), of.targets.numpy(), of.head.numpy(), of.predicted.numpy()
    there = sorted(set(y.tolist()))
    mu = np.array([h[y == c].mean(0) for c in there])
    m = mu - mu.mean(0)
    within = sum((h[y == c] - mu[k]).T @ (h[y == c] - mu[k]) for k, c in enumerate(there)) / len(h)
    between = m.T @ m / len(there)
    norms = np.linalg.norm(m, axis=1)
    cosines = [m[a] @ m[b] / norms[a] / norms[b] for a in range(len(m)) for b in range(len(m)) if a != b]
    nearest = [there[int(np.argmin(((mu - row) ** 2).sum(1)))] for row in h]
    return [
        float((w.sum(0) ** 2).sum() / len(w)),
        float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(there)),
        float(norms.std() / norms.mean()),
        float(np.mean(np.abs(np.array(cosines) + 1 / (len(there) - 1)))),
        float(((w[there] / np.linalg.norm(w[there]) - m / np.linalg.norm(m)) ** 2).sum()),
        float(np.mean(np.array(nearest) != guess)),
    ]


def values(of: Collapse) -> list[float]:
    return [float(measure(of)) for measure in ALL]


def test_measures_agree_with_a_worked_example() -> None:
    features = torch.tensor([[1.0, 0], [3, 0], [0, 2], [0, 2], [-1, -1], [-3, -1]])
    head = torch.tensor([[2.0, 0], [0, 1], [-1, -2]])
    of = Collapse(features, torch.tensor([0, 0, 1, 1, 2, 2]), (features @ head.T).argmax(1), head)
    assert values(of)[:5] == pytest.approx([0.66667, 0.09333, 0.14804, 0.20661, 0.16372], abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_measures_agree_with_sums_over_classes(seed: int) -> None:
    of = draws(seed)
    assert of.classes.tolist() == [0, 1, 3]
    assert values(of) == pytest.approx(plainly(of), rel=1e-9)


def test_a_collapsed_network_has_values_of_zero() -> None:
    simplex = torch.eye(5, dtype=torch.float64) - 0.2
    turned = simplex @ torch.linalg.qr(draws(width=5, examples=5).features).Q
    targets = torch.arange(50) % 5
    of = Collapse(7 * turned[targets] + 3, targets, targets, 2 * turned)
    assert values(of) == pytest.approx([0.0] * 6, abs=1e-12)


def test_rotating_shifting_and_scaling_features_with_the_head_changes_only_nc0() -> None:
    of = draws()
    turn = torch.linalg.qr(draws(1, examples=8).features).Q
    assert of.head is not None
    there = Collapse(3 * of.features @ turn + 5, of.targets, of.predicted, of.head @ turn)
    assert values(there) == pytest.approx(values(of), rel=1e-9)
    scaled = Collapse(of.features, of.targets, of.predicted, 2 * of.head)
    assert values(scaled) == pytest.approx([4 * values(of)[0], *values(of)[1:]], rel=1e-12)


def test_the_margin_is_the_distance_to_the_nearest_boundary_divided_by_the_spread() -> None:
    of = draws(examples=40)
    assert of.head is not None
    assert of.logits is not None
    z, w, h = of.logits.numpy(), of.head.numpy(), of.features.numpy()
    distances = [
        min((z[i, y] - z[i, c]) / np.linalg.norm(w[y] - w[c]) for c in range(4) if c != y)
        for i, y in enumerate(of.targets.tolist())
    ]
    expected = np.mean(distances) / np.sqrt(np.trace(np.cov(h.T, bias=True)))
    assert class_margin(of) == pytest.approx(float(expected), rel=1e-9)
    # Two points at ±3 on the first axis, on the correct side of a boundary through 0: margin 3, spread 3.
    two = torch.tensor([[3.0, 1], [-3, 1]])
    head = torch.tensor([[1.0, 0], [-1, 0]])
    right = Collapse(two, torch.tensor([0, 1]), torch.tensor([0, 1]), head, two @ head.T)
    assert class_margin(right) == pytest.approx(1.0)
    assert class_margin(dataclasses.replace(right, targets=torch.tensor([1, 0]))) == pytest.approx(-1.0)
    scaled = dataclasses.replace(of, features=5 * of.features, head=2 * of.head, logits=10 * of.logits)
    assert class_margin(scaled) == pytest.approx(class_margin(of), rel=1e-9)


def test_undefined_values_have_a_note() -> None:
    of = draws()

    def notes(collapse: Collapse | None) -> dict[str, str | None]:
        return {m.metric: m.note for m in take(OURS, OfTraining(collapse))}

    without = notes(Collapse(of.features, of.targets, of.predicted, None))
    assert {name for name, said in without.items() if said} == {"nc0", "nc3", "class_margin"}
    assert without["nc3"] == "the network has no last linear layer whose inputs are the features"
    one = notes(Collapse(of.features, torch.zeros_like(of.targets), of.predicted, of.head))
    assert {name for name, said in one.items() if said == "expected at least 2 classes"} >= {"nc1", "nc2_angle"}
    assert set(notes(None).values()) == {"expected classes, got the tokens of a text"}
    broken = take(OURS, OfTraining(Collapse(of.features / 0, of.targets, of.predicted, of.head)))
    assert {m.note for m in broken if m.value is None} == {"the features are not finite"}


def test_sgd_with_strong_l2_collapses_to_a_tenth_of_the_initial_value(tmp_path: Path) -> None:
    """A known extreme case: training until almost no example is wrong, compared with the state after five steps."""
    path = run_file(
        tmp_path,
        """
name: collapse
seeds: 1
optimizers: {sgd: {target: sgd, lr: 0.03, momentum: 0.9, weight_decay: 0.005}}
experiments:
  early: &early
    dataset: {kind: mnist, resize: 14}
    tasks: {kind: class-incremental, group_size: 10}
    models: {net: {kind: mlp, hidden: [40, 40, 40]}}
    protocol: &protocol {batch_size: 16, max_epochs: 20, max_steps: 5, early_stopping: null, train_examples: 320,
                         test_examples: 100, validation_examples: 100}
    metrics: [nc1, nc4, quantised_drop_8]
  late:
    <<: *early
    protocol: {<<: *protocol, max_steps: 400}
""",
    )
    table = pd.read_parquet(path / "metrics.parquet")
    at_end = table[(table.after_task == 1) & (table.task == 1)]
    found: dict[tuple[str, str], float] = at_end.set_index(["metric", "experiment"])["value"].to_dict()
    assert found["nc1", "late"] < found["nc1", "early"] / 10
    assert found["nc4", "late"] < 0.02 < found["nc4", "early"], "its predictions equal those of the nearest class mean"
    assert abs(found["quantised_drop_8", "late"]) <= 0.01, "at most one example in a hundred is wrong"
    curve = pd.read_parquet(path / "curves.parquet").query("experiment == 'late'")
    assert curve.train_loss.iloc[-1] < 0.1
