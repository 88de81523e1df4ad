"""The tasks that trials failed to learn, according to the tables of a run.

Like forgetting, these tasks are determined when a run is read, so that the same rule applies to runs that did not
record them. If a table lacks the fraction of the most frequent class, as in runs of earlier versions, the accuracy of
guessing is assumed to be 1/C on a task with C classes.

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
    """The held-out results of one trial.

    accuracy: (T+1, T), the accuracy matrix; the only matrix that is kept, because matrices grow with the square of T.
    start: (T,), the initial loss on each task, as returned by `start_losses`.
    guess: (T,), the fraction of the most frequent class of each task; NaN if not recorded.
    examples: (T,), the number of held-out examples of each task.
    classes: the number of classes per task; 0 if unknown.
    """

    accuracy: Matrix
    start: Vector
    guess: Vector
    examples: Vector
    classes: int


def right_after(matrix: Matrix) -> Vector:
    """Return each task's entry right after training on it: (T+1, T) -> (T,). Every protocol scores these entries."""
    return np.diagonal(matrix[1:]).copy()


def not_learnt(held: Mapping[str, Held], curves: pa.Table) -> dict[str, NotLearnt]:
    """Return the tasks that were not learnt, by trial id; trials in which all tasks were learnt are omitted.

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

    trials: the number of trials that are `ok`.
    affected: the number of these trials that failed to learn at least one task.
    guessed: the number of these trials whose accuracy was no better than guessing on some task.
    exploded: the number of these trials whose loss exploded on some task.
    tasks: the tasks on which either happened in any of these trials.
    """

    trials: int
    affected: int
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
        return Shortcoming(trials, sum(map(bool, found)), sum(map(bool, guessed)), sum(map(bool, exploded)), union)

    def __str__(self) -> str:
        kinds = ((self.guessed, GUESSED, self.tasks.guessed), (self.exploded, EXPLODED, self.tasks.exploded))
        of = f"of {count(self.trials, 'trial')}"
        return "; ".join(f"{n} {of}: {what} ({task_list(tasks)})" for n, what, tasks in kinds if n)


def without_learning(note: str) -> str:
    """Return a trial's note without the parts about tasks not learnt; this module determines these tasks itself."""
    # Notes of version 0.2.0 end in "times its start".
    known = (GUESSED, EXPLODED.removesuffix("its initial value"))
    return "; ".join(part for part in note.split("; ") if not part.startswith(known))


def _highest(curves: pa.Table, tasks: Mapping[str, int]) -> dict[str, Vector]:
    """Return the highest training loss on each task, (T,), by trial; NaN where no loss is recorded."""
    trial, ids = codes(curves["trial"])
    place, loss = numbers(curves["task"]), numbers(curves["train_loss"])
    counts = np.array([tasks.get(name, 0) for name in ids], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = np.full(int(starts[-1]), np.nan)
    known = (place >= 1) & (place <= counts[trial]) if len(ids) else np.zeros(0, np.bool_)
    np.fmax.at(flat, (starts[trial[known]] + place[known] - 1).astype(np.int64), loss[known])
    found = {name: flat[starts[i] : starts[i + 1]] for i, name in enumerate(ids) if name in tasks}
    return {name: found.get(name, np.full(count, np.nan)) for name, count in tasks.items()}
