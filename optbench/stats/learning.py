"""Trials that failed to learn their tasks, derived from the tables of a run.

They are derived when a run is read, like forgetting, so that runs that did not record them are judged by the same rule.
If a table lacks the fraction of the most frequent class, as in runs of earlier versions, the accuracy of guessing is
assumed to be 1/C on a task of C classes.

Legend: `T` tasks; matrices (T+1, T), row 0 before any training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from optbench.counting import count
from optbench.metrics.learning import (
    EXPLODED,
    GUESSED,
    NotLearnt,
    loss_exploded,
    no_better_than_guessing,
    task_list,
)
from optbench.store.columns import codes, numbers

Matrix: TypeAlias = NDArray[np.float64]
Vector: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """The held-out results of one trial; only one matrix is kept, because matrices grow with the square of T.

    accuracy: (T+1, T). start: (T,), the losses before the first step on each task, as in `start_losses`. guess:
    (T,), the fraction of the most frequent class, NaN if not recorded. examples: (T,), the number of examples.
    classes: the number of classes per task, 0 if unknown.
    """

    accuracy: Matrix
    start: Vector
    guess: Vector
    examples: Vector
    classes: int


def right_after(matrix: Matrix) -> Vector:
    """Return the entry (T,) of a matrix (T+1, T) for each task right after its training; every protocol scores it."""
    return np.diagonal(matrix[1:]).copy()


def not_learnt(held: Mapping[str, Held], curves: pa.Table) -> dict[str, NotLearnt]:
    """Return the tasks that were not learnt, by trial id; no entry for a trial in which all tasks were learnt.

    curves: the table `curves`, with the columns `trial`, `task` and `train_loss`.
    """
    highest = _highest(curves, {name: one.accuracy.shape[1] for name, one in held.items()})
    every: dict[str, NotLearnt] = {}
    for name, one in held.items():
        even = 1 / one.classes if one.classes else math.nan
        share = np.where(np.isnan(one.guess), even, one.guess)
        guessed = no_better_than_guessing(one.accuracy, share, one.examples)
        every[name] = NotLearnt.of(guessed, loss_exploded(highest[name], one.start))
    return {name: tasks for name, tasks in every.items() if tasks}


@dataclass(frozen=True)
class Shortcoming:
    """The tasks that the trials of one arm failed to learn.

    trials: the number that are `ok`. guessed, exploded: how many of them were no better than guessing on a task, and
    how many had an exploding loss. tasks: the tasks on which this happened in any of them.
    """

    trials: int
    guessed: int
    exploded: int
    tasks: NotLearnt

    @staticmethod
    def of(trials: int, found: Sequence[NotLearnt]) -> Shortcoming | None:
        """Combine the tasks that each trial did not learn; None if every trial learnt all tasks."""
        if not any(found):
            return None
        guessed, exploded = ([getattr(tasks, what) for tasks in found] for what in ("guessed", "exploded"))
        union = NotLearnt(*(tuple(sorted({t for tasks in every for t in tasks})) for every in (guessed, exploded)))
        return Shortcoming(trials, sum(map(bool, guessed)), sum(map(bool, exploded)), union)

    def __str__(self) -> str:
        kinds = ((self.guessed, GUESSED, self.tasks.guessed), (self.exploded, EXPLODED, self.tasks.exploded))
        of = f"of {count(self.trials, 'trial')}"
        return "; ".join(f"{n} {of}: {what} ({task_list(tasks)})" for n, what, tasks in kinds if n)


def without_learning(note: str) -> str:
    """Return a trial's note without the parts on tasks not learnt, which are derived here; empty if nothing remains."""
    return "; ".join(part for part in note.split("; ") if not part.startswith((GUESSED, EXPLODED)))


def _highest(curves: pa.Table, tasks: Mapping[str, int]) -> dict[str, Vector]:
    """Return the highest training loss of each task, (T,), by trial; NaN if none is recorded."""
    trial, ids = codes(curves["trial"])
    place, loss = numbers(curves["task"]), numbers(curves["train_loss"])
    counts = np.array([tasks.get(name, 0) for name in ids], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = np.full(int(starts[-1]), np.nan)
    known = (place >= 1) & (place <= counts[trial]) if len(ids) else np.zeros(0, np.bool_)
    np.fmax.at(flat, (starts[trial[known]] + place[known] - 1).astype(np.int64), loss[known])
    found = {name: flat[starts[i] : starts[i + 1]] for i, name in enumerate(ids) if name in tasks}
    return {name: found.get(name, np.full(count, np.nan)) for name, count in tasks.items()}
