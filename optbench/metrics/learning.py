"""Whether a network has learnt what it was trained on: without that, "forgets nothing" says nothing.

Legend: `T` tasks; `...` any leading axes (trials). NumPy arrays in, NumPy arrays out; NaN where something is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

STANDARD_ERRORS = 3
"""How far above guessing an accuracy must be: one-sided, chance alone gets there in 0.13% of tasks."""
EXPLOSION = 10
"""The multiple of its start above which a training loss has exploded. At the start of a task an untrained network has
ln C, 2.3 for ten classes; a loss of 23 means that the true classes get a probability of 1e-10."""


def no_better_than_guessing(accuracy: ArrayLike, guess: ArrayLike, examples: ArrayLike) -> Flags:
    """True for every task on which the accuracy right after training on it is that of a guess.

    A guess always names the most frequent class; an accuracy beats it when it lies more than three standard errors of
    the guess's own accuracy above.

    accuracy: (..., T+1, T), row i after task i, row 0 before any training. guess: (..., T), the share of the most
    frequent class among the examples of each task. examples: (..., T), how many there are. -> (..., T), False where
    an entry is NaN.
    """
    matrix, share, n = (np.asarray(value, np.float64) for value in (accuracy, guess, examples))
    reached = np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)
    error = np.sqrt(share * (1 - share) / np.maximum(n, 1))
    flags: Flags = reached <= share + STANDARD_ERRORS * error
    return flags


def loss_exploded(losses: ArrayLike, start: ArrayLike) -> Flags:
    """True where a training loss was more than ten times its start.

    losses: (..., T), the highest training loss in each task, averaged between two evaluations: a spike of a few steps
    that the network recovers from does not count. start: (..., T), the loss on each task before the first
    step on it, at least that of the untrained network. -> (..., T), False where either is NaN.
    """
    flags: Flags = np.asarray(losses, np.float64) > EXPLOSION * np.asarray(start, np.float64)
    return flags


def start_losses(loss: ArrayLike) -> Array:
    """Return the loss on each task before the first step on it, at least that of the untrained network.

    loss: (..., T+1, T), rows as those of an accuracy matrix. -> (..., T), NaN where both are.
    """
    matrix = np.asarray(loss, np.float64)
    before = np.diagonal(matrix[..., :-1, :], axis1=-2, axis2=-1)
    return np.fmax(before, matrix[..., 0, :])


def majority_share(counts: ArrayLike) -> float:
    """Return the share of the most frequent class; NaN without examples. counts: (C,) examples of each class."""
    number = np.asarray(counts, np.float64)
    total = float(number.sum())
    return float(number.max()) / total if total else math.nan


ABOVE_TARGET = "ended above the target training loss"
"""Of tasks, in a trial's note: see `early_stopping.target`."""
GUESSED = "no better than guessing right after training"
EXPLODED = f"training loss above {EXPLOSION} times its start"


@dataclass(frozen=True)
class NotLearnt:
    """What a trial, or several, did not learn: tasks, counted from 1, ascending.

    guessed: those on which it was no better than guessing right after training on them.
    exploded: those in which the training loss, averaged between two evaluations, exceeded ten times its start.
    """

    guessed: tuple[int, ...] = ()
    exploded: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.guessed or self.exploded)

    @staticmethod
    def of(guessed: Flags, exploded: Flags) -> NotLearnt:
        """From flags of one trial's tasks, (T,)."""
        return NotLearnt(*(tuple((np.flatnonzero(flags) + 1).tolist()) for flags in (guessed, exploded)))

    @property
    def notes(self) -> list[str]:
        """What is said of it: `no better than guessing right after training (tasks 1, 3-5)`."""
        found = ((GUESSED, self.guessed), (EXPLODED, self.exploded))
        return [f"{what} ({task_list(tasks)})" for what, tasks in found if tasks]


def task_list(tasks: Sequence[int]) -> str:
    """`task 2`, `tasks 1, 3-5`: ascending, neighbours together."""
    ends: list[list[int]] = []
    for task in tasks:
        if ends and task == ends[-1][1] + 1:
            ends[-1][1] = task
        else:
            ends.append([task, task])
    listed = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)
    return f"{'task' if len(tasks) == 1 else 'tasks'} {listed}"
