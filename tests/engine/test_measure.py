"""Measuring the untrained network, which all optimizers of a seed share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.data import Dataset
from optbench.engine import TrialResult, Workspace, train
from optbench.engine.evaluate import Evaluator, Score, ScoreWithFeatures
from optbench.engine.stack import Layout
from optbench.models import build, initialise
from optbench.plan import cohorts, trials
from optbench.store.tables import AccuracyRow
from optbench.streams import generator
from optbench.tasks import Examples
from tests.conftest import same_bits, small_suite

SUITE = small_suite(
    {"sgd": {"target": "sgd", "lr": [0.1, 0.2]}, "adam": {"target": "adam"}}, seeds=2, max_epochs=1, train_examples=320
)
TASKS = 2


def trained(mnist: Dataset, *, share: bool) -> list[TrialResult]:
    """Train all trials, sharing one workspace as in a worker, or with a new workspace for each."""

    def workspace() -> Workspace:
        return Workspace.of(SUITE.experiments["small"], mnist, SUITE.seed, torch.device("cpu"))

    shared = workspace()
    return [
        result
        for cohort in cohorts(trials(SUITE))
        for trial in cohort.trials
        for result in train(cohorts([trial])[0], shared if share else workspace(), lambda progress: None)
    ]


def test_the_untrained_network_of_a_seed_is_evaluated_once(mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    plain, score = Evaluator.read, Evaluator.score

    def counting(self: Evaluator, row: Tensor, examples: Examples, **what: Any) -> ScoreWithFeatures:
        read.append(row.numpy().tobytes())
        return plain(self, row, examples, **what)

    def counting_scores(self: Evaluator, rows: Sequence[Tensor], examples: Sequence[Examples]) -> list[Score]:
        read.extend(row.numpy().tobytes() for row in rows)
        return score(self, rows, examples)

    apart = trained(mnist, share=False)
    monkeypatch.setattr(Evaluator, "read", counting)
    monkeypatch.setattr(Evaluator, "score", counting_scores)
    together = trained(mnist, share=True)
    assert len(together) == 6
    assert all(map(same_bits, together, apart))
    network = build(SUITE.experiments["small"].models["net"], mnist.inputs, mnist.classes)
    layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
    for seed in SUITE.seeds:
        start = layout.pack(initialise(network, generator(SUITE.seed, seed, "initial weights")))
        assert read.count(start.numpy().tobytes()) == 2 * TASKS, (
            "once on the test and once on the validation data of every task"
        )


def test_every_trial_has_the_rows_of_its_seeds_untrained_network(mnist: Dataset) -> None:
    before: dict[int, list[list[float | None]]] = {}
    for result in trained(mnist, share=True):
        rows = [row for row in result.rows if isinstance(row, AccuracyRow) and row.after_task == 0]
        assert [row.task for row in rows] == list(range(1, TASKS + 1))
        before.setdefault(result.trial.seed, []).append([row.loss for row in rows])
    assert all(len(found) == 3 and found == found[:1] * 3 for found in before.values())
    assert before[0][0] != before[1][0]
