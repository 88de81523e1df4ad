"""The tasks that a finished trial failed to learn, and those that ended with a loss above the target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from optbench.metrics.learning import NotLearnt, loss_exploded, no_better_than_guessing, start_losses
from optbench.store.tables import AccuracyRow, CurveRow, Row
from optbench.suite.protocol import Protocol


def not_learnt(rows: Sequence[Row]) -> NotLearnt:
    """Return the tasks that a trial failed to learn, given its results on all tasks."""
    found = [row for row in rows if isinstance(row, AccuracyRow)]
    curve = [row for row in rows if isinstance(row, CurveRow)]
    tasks = max((row.task for row in found), default=0)
    accuracy, loss = (np.full((tasks + 1, tasks), math.nan) for _ in range(2))
    guess, examples, highest = (np.full(tasks, math.nan) for _ in range(3))
    for row in found:
        accuracy[row.after_task, row.task - 1] = _number(row.accuracy)
        loss[row.after_task, row.task - 1] = _number(row.loss)
        guess[row.task - 1], examples[row.task - 1] = _number(row.majority), row.examples
    for point in curve:
        highest[point.task - 1] = np.fmax(highest[point.task - 1], _number(point.train_loss))
    guessed = no_better_than_guessing(accuracy, guess, examples)
    return NotLearnt.of(guessed, loss_exploded(highest, start_losses(loss)))


def tasks_above_target(rows: Sequence[Row], protocol: Protocol) -> tuple[int, ...] | None:
    """Return the tasks that ended with a training loss above `early_stopping.target`; None if there is no target.

    rows: all results of a finished trial. The last evaluation in a task uses the final weights.
    """
    if protocol.early_stopping is None or (target := protocol.early_stopping.target) is None:
        return None
    last = {row.task: row.eval_loss for row in rows if isinstance(row, CurveRow)}
    return tuple(sorted(task for task, loss in last.items() if loss is None or loss > target))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
