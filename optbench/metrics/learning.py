"""Checks of whether a network has learnt its tasks; if it has not, low forgetting is meaningless.

Legend: `T` tasks; `...` any leading axes (trials). Functions work on NumPy arrays, in which NaN marks an unknown value.
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
"""Number of standard errors by which an accuracy must exceed the accuracy of guessing.

By chance, pure guessing exceeds this threshold on 0.13% of tasks.
"""
EXPLOSION = 10
"""A training loss has exploded if it exceeds this multiple of its initial value. An untrained network starts at ln C,
 which is 2.3 for ten classes; a loss of 23 corresponds to a probability of 1e-10 for the true class."""


def no_better_than_guessing(accuracy: ArrayLike, guess: ArrayLike, examples: ArrayLike) -> Flags:
    """Return True for every task whose accuracy right after training is no better than guessing.

    Guessing means always predicting the most frequent class. An accuracy is better than guessing if it exceeds the
    accuracy of guessing by more than three standard errors.

    accuracy: (..., T+1, T), row i after task i, row 0 before training. guess: (..., T), the share of the most
    frequent class among the examples of each task. examples: (..., T), the number of these examples. -> (..., T), False
    where the accuracy, `guess` or `examples` is NaN.
    """
    matrix, share, n = (np.asarray(value, np.float64) for value in (accuracy, guess, examples))
    reached = np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)
    error = np.sqrt(np.maximum(share * (1 - share), 0) / np.maximum(n, 1))
    flags: Flags = reached <= share + STANDARD_ERRORS * error
    return flags


def loss_exploded(losses: ArrayLike, start: ArrayLike) -> Flags:
    """Return True where a training loss exceeded ten times its initial value.

    losses: (..., T), the highest training loss in each task. Losses are averaged over the steps between two
    evaluations, so that a brief spike does not count. start: (..., T), the initial loss on each task (see
    `start_losses`). -> (..., T), False where `losses` or `start` is NaN.
    """
    flags: Flags = np.asarray(losses, np.float64) > EXPLOSION * np.asarray(start, np.float64)
    return flags


def start_losses(loss: ArrayLike) -> Array:
    """Return the initial loss on each task: right before training on it or before any training, whichever is higher.

    loss: (..., T+1, T), the loss on each task, with the same rows as an accuracy matrix. -> (..., T), NaN where both
    losses are NaN.
    """
    matrix = np.asarray(loss, np.float64)
    before = np.diagonal(matrix[..., :-1, :], axis1=-2, axis2=-1)
    return np.fmax(before, matrix[..., 0, :])


def majority_share(counts: ArrayLike) -> float:
    """Return the share of the most frequent class; NaN without examples. counts: (C,), examples per class."""
    number = np.asarray(counts, np.float64)
    total = float(number.sum())
    return float(number.max()) / total if total else math.nan


ABOVE_TARGET = "ended above the target training loss"
"""Text in a trial's note about tasks that ended with a loss above `early_stopping.target`."""
GUESSED = "no better than guessing right after training"
EXPLODED = f"training loss above {EXPLOSION} times its initial value"


@dataclass(frozen=True)
class NotLearnt:
    """Tasks, counted from 1, that one or several trials failed to learn.

    guessed: tasks on which the accuracy right after training was no better than guessing.
    exploded: tasks in which the training loss, averaged between evaluations, exceeded ten times its initial value.
    """

    guessed: tuple[int, ...] = ()
    exploded: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.guessed or self.exploded)

    @staticmethod
    def of(guessed: Flags, exploded: Flags) -> NotLearnt:
        """Convert flags (T,) for the tasks of one trial to task numbers."""
        return NotLearnt(*(tuple((np.flatnonzero(flags) + 1).tolist()) for flags in (guessed, exploded)))

    @property
    def notes(self) -> list[str]:
        """The failures in words, e.g. `no better than guessing right after training (tasks 1, 3-5)`."""
        found = ((GUESSED, self.guessed), (EXPLODED, self.exploded))
        return [f"{what} ({task_list(tasks)})" for what, tasks in found if tasks]


def task_list(tasks: Sequence[int]) -> str:
    """Return ascending task numbers as text with ranges, e.g. `task 2` or `tasks 1, 3-5`."""
    ends: list[list[int]] = []
    for task in tasks:
        if ends and task == ends[-1][1] + 1:
            ends[-1][1] = task
        else:
            ends.append([task, task])
    listed = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)
    return f"{'task' if len(tasks) == 1 else 'tasks'} {listed}"
