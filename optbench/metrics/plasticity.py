"""Plasticity: whether a network still learns after many tasks, measured by its online accuracy on each task.

Legend: `T` tasks; `...` any leading axes (seeds, optimizers).

`accuracy` has shape (..., T) and contains fractions a_k: the mean accuracy on the batches of task k, where each batch
is evaluated before the update on it (Kumar et al. 2023, arXiv:2308.11958, section 4.1). A window consists of
w = max(1, ⌊T/10⌋) tasks (see `window`).

Every metric returns float64 of shape (...), and raises ValueError unless `accuracy` has shape (..., T) with T ≥ 1. The
result is NaN where stated below, and if a sequence has a non-finite entry, because values of a diverged trial would not
be comparable. `note` gives the reason.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
SLOPE_TASKS = 100
"""Slopes are changes per this number of tasks."""


def window(tasks: int) -> int:
    """Return the window length w for a number of tasks."""
    return max(1, tasks // 10)


def window_means(accuracy: ArrayLike) -> Array:
    """Return the mean of every w consecutive tasks: (..., T) -> (..., T - w + 1)."""
    sequences = _sequences(accuracy)
    means: Array = sliding_window_view(sequences, window(sequences.shape[-1]), axis=-1).mean(axis=-1)
    return means


def online_accuracy(accuracy: ArrayLike) -> Array:
    """Return the mean of a_k over all tasks; higher is better."""
    mean: Array = _sequences(accuracy).mean(axis=-1)
    return mean


def late_online_accuracy(accuracy: ArrayLike) -> Array:
    """Return the mean of a_k over the last w tasks; higher is better."""
    return window_means(accuracy)[..., -1]


def plasticity_kept(accuracy: ArrayLike) -> Array:
    """Return the mean of a_k over the last w tasks divided by the largest mean over w consecutive tasks.

    The result is at most 1; higher is better. NaN if an entry is not finite, or if the largest mean is 0: a network
    that never learnt has no plasticity to keep.

    Example:
        >>> round(float(plasticity_kept(np.linspace(0.9, 0.7, 100))), 3)
        0.796
    """
    means = window_means(accuracy)
    best = means.max(axis=-1)
    return means[..., -1] / np.where(best == 0, np.nan, best)


def plasticity_slope(accuracy: ArrayLike) -> Array:
    """Return the Theil-Sen slope per 100 tasks: median of (a_l - a_k) / (l - k) over k < l; higher is better.

    The slope is robust to outliers in up to 29% of the tasks (Sen 1968, JASA 63:1379). NaN if T = 1 or an
    entry is not finite.

    Example:
        >>> round(float(plasticity_slope(np.linspace(0.9, 0.7, 100))), 3)
        -0.202
    """
    sequences = _sequences(accuracy)
    tasks = sequences.shape[-1]
    if tasks == 1:
        return np.full(sequences.shape[:-1], np.nan)
    first, second = np.triu_indices(tasks, k=1)
    # One sequence at a time, because a thousand tasks have half a million pairs.
    found = [np.median((a[second] - a[first]) / (second - first)) for a in sequences.reshape(-1, tasks)]
    return SLOPE_TASKS * np.array(found, dtype=np.float64).reshape(sequences.shape[:-1])


def against_fresh(accuracy: ArrayLike, fresh: ArrayLike) -> Array:
    """Return the mean of a_k over the last w tasks minus that of fresh networks on the same tasks; higher is better.

    fresh: (..., T), the online accuracy of fresh networks, broadcast against `accuracy`. The result is negative if
    earlier learning hinders later learning, and positive if it helps.

    Raises:
        ValueError: `accuracy` and `fresh` differ in T or do not broadcast.
    """
    ours, theirs = _sequences(accuracy), _sequences(fresh)
    if ours.shape[-1] != theirs.shape[-1]:
        raise ValueError(f"expected fresh networks on {ours.shape[-1]} tasks, got {theirs.shape[-1]}")
    return late_online_accuracy(ours) - late_online_accuracy(theirs)


def note(accuracy: ArrayLike, *, of: Literal["kept", "slope", "level"]) -> str | None:
    """Return why a metric of one sequence (T,) is NaN, or None if it is defined.

    of: the kind of metric: `kept`, `slope`, or `level` for a mean accuracy, such as either mean in `against_fresh`.
    """
    sequence = _sequences(accuracy)
    if np.isnan(sequence).any():
        return "the online accuracy has non-finite entries"
    if of == "slope" and sequence.shape[-1] == 1:
        return "expected at least 2 tasks, got 1"
    if of == "kept" and not sequence.any():
        return "the online accuracy is 0 on every task"
    return None


def _sequences(accuracy: ArrayLike) -> Array:
    """Convert `accuracy` (..., T) to float64, replacing every sequence that has a non-finite entry with NaN."""
    found = np.asarray(accuracy, dtype=np.float64)
    if found.ndim < 1 or found.shape[-1] < 1:
        raise ValueError(f"expected accuracies of shape (..., T) with T ≥ 1, got {found.shape}")
    return np.where(np.isfinite(found).all(axis=-1, keepdims=True), found, np.nan)
