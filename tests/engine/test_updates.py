"""The geometry of updates during training agrees with a plain loop in every lane and does not affect results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from optbench.data import Dataset
from optbench.data.pooling import average_pooled
from optbench.engine import Workspace
from optbench.engine.batches import BatchStream, Normaliser
from optbench.engine.members import TrialResult
from optbench.engine.updates import watched
from optbench.metrics.updates import NAMES, POINTS, geometry
from optbench.models import materialised
from optbench.optimizers.shampoo import Shampoo
from optbench.store.tables import MetricRow, UpdateRow
from optbench.suite import Suite
from tests.conftest import same_bits, small_suite, train_suite

TASKS = {"kind": "permuted", "count": 3, "examples_per_task": 160}
PROTOCOL: dict[str, Any] = {"early_stopping": None, "max_epochs": 2, "batch_size": 16, "evaluate_every": 0.3}
LANES: dict[str, dict[str, Any]] = {
    "elementwise": {"target": "sgd", "lr": 0.1, "momentum": 0.5},
    "batched": {"target": "shampoo", "lr": 0.1},
    "per-member": {"target": "torch.optim:RAdam", "lr": 0.01},
    "closure": {"target": "torch.optim:LBFGS", "lr": 0.1, "max_iter": 2},
}
PLAIN: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "elementwise": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.5),
    "batched": lambda weights: Shampoo(weights, lr=0.1),
    "per-member": lambda weights: torch.optim.RAdam(weights, lr=0.01),
    "closure": lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=2),
}


@pytest.fixture(scope="module")
def small(mnist: Dataset) -> Dataset:
    """MNIST at 7 × 7 pixels, since with Shampoo the roots for 784 pixels would take most of the time."""
    return average_pooled(mnist, 7)


def suite_of(lanes: Sequence[str], **wanted: Any) -> Suite:
    made = {"tasks": TASKS, "metrics": ["hoyer", "update_angle"], "seeds": 2, **PROTOCOL, **wanted}
    return small_suite({name: LANES[name] for name in lanes}, **made)


def rows(result: TrialResult) -> list[UpdateRow]:
    return [row for row in result.rows if isinstance(row, UpdateRow)]


@pytest.mark.parametrize("lane", LANES)
def test_rows_equal_those_of_a_plain_loop(small: Dataset, one_thread: None, lane: str) -> None:
    suite = suite_of([lane])
    for result in train_suite(suite, small):
        experiment, seed = suite.experiments["small"], result.trial.seed
        workspace = Workspace.of(experiment, small, suite.seed, torch.device("cpu"))
        blueprint, sequence = workspace.blueprint("small", "net"), workspace.family.sequence(seed)
        normalise = Normaliser.of(small, experiment.protocol, torch.device("cpu"))
        network = materialised(blueprint.network, torch.device("cpu"))
        blueprint.layout.copy_to(network, blueprint.layout.pack(blueprint.start(suite.seed, seed)))
        optimizer = PLAIN[lane](network.parameters())
        expected: dict[tuple[int, int, str], tuple[float, ...]] = {}
        for task in range(3):
            examples = sequence.train(task)
            stream = BatchStream(examples, 16, suite.seed, seed, task)
            if isinstance(optimizer, Shampoo):
                optimizer.begin_task()
            for step in range(20):
                batch = examples.select(stream.indices(step))

                def closure() -> torch.Tensor:
                    optimizer.zero_grad()  # noqa: B023
                    loss = nn.functional.cross_entropy(network(normalise(batch.inputs)), batch.targets)  # noqa: B023
                    loss.backward()
                    return loss

                closure()
                matrices = {name: p for name, p in network.named_parameters() if p.ndim == 2}
                before = {name: (p.detach().clone(), p.grad.clone()) for name, p in matrices.items()}  # type: ignore[union-attr]
                optimizer.step(closure) if lane == "closure" else optimizer.step()  # type: ignore[arg-type]
                for name, (weight, gradient) in before.items():
                    found = geometry(weight, gradient, matrices[name].detach() - weight)
                    expected[task + 1, step + 1, name] = astuple(found)
        points = {(row.task, row.step) for row in rows(result)}
        assert len(points) == POINTS
        assert len(rows(result)) == 2 * POINTS
        for row in rows(result):
            got = [getattr(row, name) for name in NAMES]
            assert got == pytest.approx(expected[row.task, row.step, row.layer], rel=2e-2, abs=2e-3), row
        averages = {
            row.layer: row for row in result.rows if isinstance(row, MetricRow) and row.metric == "update_angle"
        }
        sizes = {name: p.numel() for name, p in network.named_parameters() if p.ndim == 2}
        means = {n: sum(row.angle or 0 for row in rows(result) if row.layer == n) / POINTS for n in sizes}
        assert {name: averages[name].value for name in sizes} == pytest.approx(means)
        weighted = sum(means[name] * size for name, size in sizes.items()) / sum(sizes.values())
        assert (averages[None].value, averages[None].note) == (pytest.approx(weighted), None)
        assert (averages[None].after_task, averages[None].task) == (3, None)


def test_measuring_updates_does_not_affect_results_or_depend_on_companions(small: Dataset, one_thread: None) -> None:
    watching, without = suite_of([*LANES]), suite_of([*LANES], metrics=["hoyer"])
    found = train_suite(watching, small)
    for i, (a, b) in enumerate(zip(train_suite(without, small), found, strict=True)):
        assert rows(a) == []
        own = [
            r
            for r in b.rows
            if not isinstance(r, UpdateRow) and not (isinstance(r, MetricRow) and "update" in r.metric)
        ]
        assert same_bits(a, TrialResult(b.trial, tuple(own), b.weights))
        if i % 2:
            assert same_bits(b, train_suite(watching, small, only=i)[0])


@pytest.mark.parametrize(("tasks", "steps"), [(1, 40), (3, 20), (120, 312), (16, 1), (40, 1)])
def test_measured_updates_are_spread_over_the_whole_training(tasks: int, steps: int) -> None:
    found = [(task * steps + step) / (tasks * steps) for task in range(tasks) for step in watched(tasks, task, steps)]
    assert len(found) == POINTS
    assert all(0 <= at - i / POINTS <= 1 / POINTS for i, at in enumerate(sorted(found)))


def test_means_over_a_short_training_note_the_number_of_updates(small: Dataset, one_thread: None) -> None:
    assert len(watched(1, 0, 3)) == 3
    suite = suite_of(["elementwise"], tasks={**TASKS, "count": 1}, max_steps=3, seeds=1)
    (row,) = [
        r
        for r in train_suite(suite, small)[0].rows
        if isinstance(r, MetricRow) and r.metric == "update_angle" and not r.layer
    ]
    assert row.note == "mean of 3 updates, not 16: training was short or stopped early, or an update is undefined"
