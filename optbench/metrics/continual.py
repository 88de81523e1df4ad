"""Continual learning: what a sequence of tasks left behind, read off the accuracy matrix.

Legend: `T` tasks; `...` any leading axes (seeds, optimizers).

`accuracy` has shape (..., T+1, T), as fractions: row 0 before any training, row i after task i, column j on task j.
In the formulas R[i, j] is row i and task j, with tasks counted from 1 (so task j is column j - 1 of the array).

Every function returns float64 of shape (...), and raises ValueError when the shape is not (..., T+1, T). It is NaN
where a matrix has a non-finite entry anywhere (a trial that diverged halfway has no value comparable with others'),
and, for the means over T - 1 tasks, where T = 1. `note` says which of the two it was.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]


def average_accuracy(accuracy: ArrayLike) -> Array:
    """Mean accuracy over all tasks at the end: mean_j R[T, j] (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)."""
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, :], matrix)


def learning_accuracy(accuracy: ArrayLike) -> Array:
    """Mean accuracy on each task right after training on it: mean_j R[j, j] (Riemer et al. 2019, arXiv:1810.11910)."""
    matrix = _matrix(accuracy)
    return _mean(_just_learnt(matrix), matrix)


def forgetting(accuracy: ArrayLike) -> Array:
    """Mean loss from the best accuracy since a task was learnt: mean_{j<T} (max_{j≤l<T} R[l, j] - R[T, j]).

    The maximum begins at the row where the task was learnt and leaves the final row out, so forgetting can be
    negative (Chaudhry et al. 2018, arXiv:1801.10112). Other tools use the same word when they include the final row
    or the rows before the task was learnt, or when they take first minus last.
    """
    matrix = _matrix(accuracy)
    tasks = matrix.shape[-1]
    # Entry (l, j) counts when j ≤ l < T: rows 1..T-1 of the matrix, on and below their diagonal.
    since_learnt = np.tri(tasks - 1, dtype=bool)
    candidates = np.where(since_learnt, matrix[..., 1:tasks, : tasks - 1], -np.inf)
    best = candidates.max(axis=-2, initial=-np.inf)
    return _mean(best - matrix[..., -1, :-1], matrix)


def last_task_accuracy(accuracy: ArrayLike) -> Array:
    """Accuracy at the end on the task trained last: R[T, T]."""
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, -1:], matrix)


def earlier_tasks_accuracy(accuracy: ArrayLike) -> Array:
    """Mean accuracy at the end on all tasks before the last: mean_{j<T} R[T, j].

    Read it beside `last_task_accuracy`: who never learns forgets nothing.
    """
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, :-1], matrix)


def backward_transfer(accuracy: ArrayLike) -> Array:
    """Mean change on each task since it was learnt: mean_{j<T} (R[T, j] - R[j, j]) (Lopez-Paz & Ranzato 2017)."""
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, :-1] - _just_learnt(matrix)[..., :-1], matrix)


def forward_transfer(accuracy: ArrayLike) -> Array:
    """Mean gain on each task before training on it: mean_{j≥2} (R[j-1, j] - R[0, j]) (Lopez-Paz & Ranzato 2017).

    The mean runs over the T - 1 tasks that have a predecessor (the authors' published code divides by T).
    """
    matrix = _matrix(accuracy)
    just_before = np.diagonal(matrix, axis1=-2, axis2=-1)[..., 1:]
    return _mean(just_before - matrix[..., 0, 1:], matrix)


def note(accuracy: ArrayLike, *, over_pairs: bool) -> str | None:
    """Why a measure of one matrix (T+1, T) is NaN, or None where it is defined.

    over_pairs: whether the measure is a mean over T - 1 tasks, and so needs at least two.
    """
    matrix = _matrix(accuracy)
    if not np.isfinite(matrix).all():
        return "the accuracy matrix has non-finite entries"
    if over_pairs and matrix.shape[-1] == 1:
        return "expected at least 2 tasks, got 1"
    return None


def _matrix(accuracy: ArrayLike) -> Array:
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] < 1 or matrix.shape[-2] != matrix.shape[-1] + 1:
        raise ValueError(f"expected accuracy of shape (..., T+1, T) with T ≥ 1, got {matrix.shape}")
    return matrix


def _just_learnt(matrix: Array) -> Array:
    """R[j, j] for every task j: (..., T+1, T) -> (..., T)."""
    return np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)


def _mean(per_task: Array, matrix: Array) -> Array:
    """The mean over the last axis, NaN where that is empty or the matrix it came from is not finite throughout."""
    if per_task.shape[-1] == 0:
        return np.full(per_task.shape[:-1], np.nan)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(matrix).all(axis=(-2, -1)))
    # Masked before the mean: infinities would otherwise meet as inf - inf and warn.
    mean: Array = np.where(finite[..., None], per_task, np.nan).mean(axis=-1)
    return mean
