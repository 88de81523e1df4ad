"""Metrics of continual learning, computed from the accuracy matrix.

Legend: `T` tasks; `...` any leading axes (seeds, optimizers).

`accuracy` has shape (..., T+1, T) and contains fractions. Row 0 is measured before training, and row i after task
i. In the formulas, R[i, j] is the entry in row i for task j, with tasks counted from 1 (so task j is column j - 1 of
the array).

Every metric returns float64 of shape (...), and raises ValueError unless `accuracy` has shape (..., T+1, T). The result
is NaN in three cases, which `note` distinguishes:

- Some R[j, j] is NaN or any entry is infinite: the trial diverged, so its values would not be comparable.
- An entry that the metric needs was not scored.
- The metric is a mean over T - 1 tasks, and T = 1.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
Needs: TypeAlias = Literal["all", "learnt", "last row", "since learnt", "before"]
"""The matrix entries that a metric needs.

- `all`: all entries
- `learnt`: R[j, j]
- `last row`: R[j, j] and R[T, j]
- `since learnt`: R[l, j] for l ≥ j
- `before`: R[j-1, j] and R[0, j] for j ≥ 2
"""


def average_accuracy(accuracy: ArrayLike) -> Array:
    """Return the mean final accuracy over all tasks: mean_j R[T, j] (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)."""
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, :], matrix)


def learning_accuracy(accuracy: ArrayLike) -> Array:
    """Return the mean accuracy on each task right after training on it: mean_j R[j, j] (Riemer et al. 2019)."""
    matrix = _matrix(accuracy)
    return _mean(_just_learnt(matrix), matrix)


def forgetting(accuracy: ArrayLike) -> Array:
    """Return the mean drop from the best accuracy before the last task: mean_{j<T} (max_{j≤l<T} R[l, j] - R[T, j]).

    The maximum starts at the row right after training on the task and excludes the final row, so forgetting can be
    negative (Chaudhry et al. 2018, arXiv:1801.10112). Other tools use the same word for different definitions: some
    include the final row or rows before the task was learnt, and some subtract the last accuracy from the first.

    Example:
        >>> rows = [[0.1, 0.1, 0.1], [0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.5, 0.7, 0.9]]  # row 0: before any training
        >>> round(float(forgetting(rows)), 3)  # ((0.95 - 0.5) + (0.8 - 0.7)) / 2
        0.275
    """
    matrix = _matrix(accuracy)
    tasks = matrix.shape[-1]
    # Entry (l, j) counts when j ≤ l < T: rows 1..T-1 of the matrix, on and below their diagonal.
    since_learnt = np.tri(tasks - 1, dtype=bool)
    candidates = np.where(since_learnt, matrix[..., 1:tasks, : tasks - 1], -np.inf)
    best = candidates.max(axis=-2, initial=-np.inf)  # NaN if any candidate is
    return _mean(best - matrix[..., -1, :-1], matrix)


def last_task_accuracy(accuracy: ArrayLike) -> Array:
    """Return the final accuracy on the last task: R[T, T]."""
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, -1:], matrix)


def earlier_tasks_accuracy(accuracy: ArrayLike) -> Array:
    """Return the mean final accuracy on all tasks before the last: mean_{j<T} R[T, j].

    Interpret the result together with `last_task_accuracy`: a network that stops learning also stops forgetting.
    """
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, :-1], matrix)


def backward_transfer(accuracy: ArrayLike) -> Array:
    """Return the mean change in a task's accuracy since learning it: mean_{j<T} (R[T, j] - R[j, j]).

    Source: Lopez-Paz & Ranzato 2017.

    Example:
        >>> rows = [[0.1, 0.1], [0.9, 0.2], [0.7, 0.8]]
        >>> round(float(backward_transfer(rows)), 3)
        -0.2
    """
    matrix = _matrix(accuracy)
    return _mean(matrix[..., -1, :-1] - _just_learnt(matrix)[..., :-1], matrix)


def forward_transfer(accuracy: ArrayLike) -> Array:
    """Return the mean accuracy gain on a task from training on earlier tasks: mean_{j≥2} (R[j-1, j] - R[0, j]).

    Source: Lopez-Paz & Ranzato 2017. The mean runs over the T - 1 tasks that have a predecessor; the authors' published
    code divides by T.
    """
    matrix = _matrix(accuracy)
    just_before = np.diagonal(matrix, axis1=-2, axis2=-1)[..., 1:]
    return _mean(just_before - matrix[..., 0, 1:], matrix)


NOT_SCORED = "some accuracies that the metric needs were not scored (protocol.score)"


def note(accuracy: ArrayLike, *, over_pairs: bool, needs: Needs = "all") -> str | None:
    """Return why a metric of one matrix (T+1, T) is NaN, or None if it is defined.

    over_pairs: whether the metric is a mean over T - 1 tasks. needs: the entries that the metric uses.
    """
    matrix = _matrix(accuracy)
    if not _ended(matrix):
        return "the accuracy matrix has non-finite entries"
    if over_pairs and matrix.shape[-1] == 1:
        return "expected at least 2 tasks, got 1"
    return NOT_SCORED if np.isnan(matrix[_needed(matrix.shape[-1], needs)]).any() else None


def _needed(tasks: int, needs: Needs) -> NDArray[np.bool_]:
    """Return a mask (T+1, T) of the entries that a metric uses."""
    row, column = np.indices((tasks + 1, tasks))
    ahead = column + 1 - row  # 0 for the task just learnt
    match needs:
        case "all":
            return np.ones((tasks + 1, tasks), np.bool_)
        case "learnt":
            return np.asarray(ahead == 0)
        case "last row":
            return np.asarray((row == tasks) | (ahead == 0))
        case "since learnt":
            return np.asarray(ahead <= 0)
        case "before":
            return np.asarray((column > 0) & ((ahead == 1) | (row == 0)))


def _ended(matrix: Array) -> NDArray[np.bool_]:
    """Return a mask (...) that is True where training on all tasks finished.

    Training finished if every R[j, j], which is always scored, is finite and no entry is infinite.
    """
    found: NDArray[np.bool_] = np.asarray(
        np.isfinite(_just_learnt(matrix)).all(axis=-1) & ~np.isinf(matrix).any(axis=(-2, -1))
    )
    return found


def _matrix(accuracy: ArrayLike) -> Array:
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim < 2 or matrix.shape[-1] < 1 or matrix.shape[-2] != matrix.shape[-1] + 1:
        raise ValueError(f"expected accuracy of shape (..., T+1, T) with T ≥ 1, got {matrix.shape}")
    return matrix


def _just_learnt(matrix: Array) -> Array:
    """Return R[j, j] for every task j: (..., T+1, T) -> (..., T)."""
    return np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)


def _mean(per_task: Array, matrix: Array) -> Array:
    """Return the mean over the last axis; NaN if this axis is empty or training on some task did not finish."""
    if per_task.shape[-1] == 0:
        return np.full(per_task.shape[:-1], np.nan)
    # Masked before the mean, because inf - inf would warn.
    mean: Array = np.where(_ended(matrix)[..., None], per_task, np.nan).mean(axis=-1)
    return mean
