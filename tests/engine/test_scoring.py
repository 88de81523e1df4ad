"""Training in which only some tasks are scored after each task."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

from optbench.data import Dataset
from optbench.engine import Workspace, train
from optbench.engine.interim import Interim
from optbench.engine.members import TrialResult
from optbench.metrics import continual
from optbench.plan import cohorts, trials
from optbench.store.tables import AccuracyRow, CurveRow, MetricRow, SpectrumRow
from optbench.suite.scoring import scored_tasks
from tests.conftest import same_bits, small_suite, train_suite

OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {"target": "sgd", "lr": 0.05}}
TASKS = 5


def trained(dataset: Dataset, score: object, tasks: int = TASKS) -> TrialResult:
    sequence = {"kind": "permuted", "count": tasks, "examples_per_task": 64}
    suite = small_suite(OPTIMIZERS, tasks=sequence, seeds=1, score=score, max_epochs=1, early_stopping=None)
    (result,) = train_suite(suite, dataset)
    return result


def entries(result: TrialResult) -> dict[tuple[int, int], AccuracyRow]:
    return {(row.after_task, row.task): row for row in result.rows if isinstance(row, AccuracyRow)}


@pytest.mark.parametrize("score", ["current", {"every": 2}])
def test_partial_scores_equal_those_of_scoring_all_tasks(mnist: Dataset, one_thread: None, score: Any) -> None:
    whole, some = trained(mnist, "all"), trained(mnist, score)
    assert whole.weights is not None
    assert some.weights is not None
    assert all((whole.weights[name] == some.weights[name]).all() for name in whole.weights)
    every, found = entries(whole), entries(some)
    rule = small_suite(OPTIMIZERS, score=score).experiments["small"].protocol.score
    assert list(found) == [(i, j) for i in range(TASKS + 1) for j in scored_tasks(rule, TASKS, i)]
    assert all(row == every[place] for place, row in found.items())
    curves = [[row for row in result.rows if isinstance(row, CurveRow)] for result in (whole, some)]
    assert curves[0] == curves[1]


def test_the_final_network_is_measured_on_the_scored_tasks_with_a_note(mnist: Dataset, one_thread: None) -> None:
    result = trained(mnist, {"every": 2})
    pooled = [row for row in result.rows if isinstance(row, MetricRow) and row.layer == "features" and row.task is None]
    assert {row.after_task for row in pooled} == {TASKS}
    assert all("pooled over task 5 of 5: the other tasks were not scored" in (row.note or "") for row in pooled)
    assert {row.after_task for row in result.rows if isinstance(row, SpectrumRow)} == {TASKS}
    ranks = [row for row in result.rows if isinstance(row, MetricRow) and row.metric == "effective_rank"]
    assert [(row.after_task, row.task) for row in ranks][: TASKS - 1] == [(i, i) for i in range(1, TASKS)]


def test_the_number_of_rows_per_task_does_not_grow_with_the_sequence(mnist: Dataset, one_thread: None) -> None:
    def per_task(result: TrialResult) -> list[int]:
        rows = [row for row in result.rows if isinstance(row, AccuracyRow | MetricRow | SpectrumRow)]
        return [sum(row.after_task == task for row in rows) for task in range(2, 22)]

    counts = per_task(trained(mnist, None, 30))
    assert len(set(counts)) == 1
    gc.collect()


def test_metrics_that_need_unscored_tasks_are_null_with_a_note() -> None:
    matrix = np.full((4, 3), np.nan)
    for after in range(4):
        for task in scored_tasks("current", 3, after):
            matrix[after, task - 1] = 0.1 * task + 0.2 * (after == task)
    assert float(continual.learning_accuracy(matrix)) == pytest.approx(0.4)
    assert float(continual.last_task_accuracy(matrix)) == pytest.approx(0.5)
    assert continual.note(matrix, over_pairs=False, needs="learnt") is None
    needs: dict[str, continual.Needs] = {
        "average_accuracy": "last row",
        "earlier_tasks_accuracy": "last row",
        "backward_transfer": "last row",
        "forgetting": "since learnt",
        "forward_transfer": "before",
    }
    for name, entries_needed in needs.items():
        assert np.isnan(getattr(continual, name)(matrix))
        assert continual.note(matrix, over_pairs=True, needs=entries_needed) == continual.NOT_SCORED
    matrix[2, 1] = np.nan  # diverged in task 2
    assert np.isnan(continual.last_task_accuracy(matrix))
    assert continual.note(matrix, over_pairs=False, needs="learnt") == "the accuracy matrix has non-finite entries"


def test_training_resumed_after_task_15_of_30_gives_the_same_results(mnist: Dataset, one_thread: None) -> None:
    sequence = {"kind": "permuted", "count": 30, "examples_per_task": 64}
    suite = small_suite(OPTIMIZERS, tasks=sequence, seeds=2, max_epochs=1, early_stopping=None)
    (cohort,) = cohorts(trials(suite))
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))
    kept: list[list[Interim]] = []
    whole = train(cohort, workspace, lambda _: None, lambda take: kept.append(take()))
    begun = {interim.trials[0]: interim for interim in kept[14]}
    assert {interim.task for interim in begun.values()} == {15}
    resumed = train(cohort, workspace, lambda _: None, begun=begun)
    assert len(resumed) == len(whole) == 2
    for one, other in zip(whole, resumed, strict=True):
        assert same_bits(one, other)
