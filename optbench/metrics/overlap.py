"""Overlap of tasks: whether later tasks change the features of earlier ones, and whether tasks share directions.

Legend: `N` examples, or sampled positions of sequences; `W` sequences; `d` features; `T` tasks; k = 16.

Everything is computed in float64 from centred features. Each metric is a mean over tasks or pairs of tasks, returned
as a `NotedValue`: a number, or NaN with the reason. Neither higher nor lower values are better. Interpret each metric
relative to its null: the value for wrongly paired examples, for random subspaces, or for two halves of one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from optbench.metrics import similarity
from optbench.metrics.landscape import NotedValue

DIRECTIONS = 16
"""The dimension k of the subspaces, chosen as a quarter of a width of 64."""


@dataclass(frozen=True)
class TaskFeatures:
    """The features of one task's examples, computed by one network.

    places: (N, d), the features of every example or, for sequences, at sampled positions. means: (W, d), the features
    of each sequence, averaged over its positions; None unless examples are sequences.
    """

    places: Tensor
    means: Tensor | None = None


@dataclass(frozen=True)
class Change:
    """One task's features right after its training and at the end, on the same examples."""

    before: TaskFeatures
    after: TaskFeatures


def kept_cka(changes: Sequence[Change], *, broken: bool = False) -> NotedValue:
    """Return the linear CKA between a task's features right after its training and at the end.

    The result is averaged over all tasks before the last.

    broken: whether to compute the null instead, in which every example is paired with another. To this end, the
        features at the end are shifted cyclically by half the number of examples.
    """

    def of(change: Change) -> Tensor:
        after = change.after.places
        after = after.roll(len(after) // 2, 0) if broken else after
        return similarity.linear_cka(change.before.places, after)

    return _mean(map(of, changes), "the features of a task do not vary", NO_EARLIER)


def kept_cka_means(changes: Sequence[Change]) -> NotedValue:
    """Return `kept_cka` of features averaged over each sequence's positions, debiased because sequences are few."""
    if any(change.before.means is None for change in changes):
        return NotedValue(math.nan, "expected sequences, got examples without positions")

    def of(change: Change) -> Tensor:
        assert change.before.means is not None
        assert change.after.means is not None
        return similarity.linear_cka(change.before.means, change.after.means, debiased=True)

    return _mean(map(of, changes), "expected at least 4 sequences whose features vary", NO_EARLIER)


def kept_overlap(changes: Sequence[Change]) -> NotedValue:
    """Return the overlap between the leading directions of a task's features right after its training and at the end.

    The directions are the k leading principal directions. The result is averaged over all tasks before the last.
    """
    pairs = [(change.before.places, change.after.places) for change in changes]
    return _overlap(pairs, NO_EARLIER)


def tasks_cka(tasks: Sequence[TaskFeatures], *, within: bool = False) -> NotedValue:
    """Return ⟨C_a, C_b⟩ / (‖C_a‖ ‖C_b‖) for the covariances of two tasks' features, averaged over pairs of tasks.

    Examples of two tasks are not paired, but units are, so this is linear CKA with units in the role of examples. The
    result is 1 for proportional covariances, and 0 if the features of the two tasks have no direction in common.

    within: whether to compute the null instead, in which the two halves of each task are compared.
    """
    return _mean((_aligned(a, b) for a, b in _pairs(tasks, within)), "the features of a task do not vary", NO_PAIR)


def tasks_overlap(tasks: Sequence[TaskFeatures], *, within: bool = False) -> NotedValue:
    """Return the overlap between the k leading principal directions of two tasks' features.

    The result is averaged over pairs of tasks.

    within: whether to compute the null instead, in which the two halves of each task are compared.
    """
    return _overlap(list(_pairs(tasks, within)), NO_PAIR)


def overlap_chance(tasks: Sequence[TaskFeatures]) -> NotedValue:
    """Return k / d, the mean overlap of two random subspaces."""
    width = tasks[0].places.shape[1]
    return NotedValue(math.nan, _too_narrow(width)) if width < DIRECTIONS else NotedValue(DIRECTIONS / width, None)


NO_EARLIER = "expected at least 2 tasks, got 1"
NO_PAIR = NO_EARLIER


def _pairs(tasks: Sequence[TaskFeatures], within: bool) -> Iterable[tuple[Tensor, Tensor]]:
    if not within:
        return ((a.places, b.places) for a, b in combinations(tasks, 2))
    halves = ((task.places, len(task.places) // 2) for task in tasks)
    return ((places[:half], places[half:]) for places, half in halves)


def _aligned(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine between the covariances of features (N, d) and (N′, d); NaN if either is constant."""
    one, other = (x.mT @ x for x in map(similarity.centred, (a, b)))
    norms = torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other)
    return torch.where(norms > 0, (one * other).sum() / norms, torch.nan)


def _overlap(pairs: Sequence[tuple[Tensor, Tensor]], none: str) -> NotedValue:
    if pairs and (width := pairs[0][0].shape[1]) < DIRECTIONS:
        return NotedValue(math.nan, _too_narrow(width))
    centred: Callable[[Tensor], Tensor] = similarity.centred
    found = (similarity.subspace_overlap(centred(a), centred(b), DIRECTIONS) for a, b in pairs)
    return _mean(found, f"the {DIRECTIONS} leading directions of a task are not determined", none)


def _mean(found: Iterable[Tensor], undefined: str, none: str) -> NotedValue:
    values = [value.item() for value in found]
    if not values:
        return NotedValue(math.nan, none)
    mean = sum(values) / len(values)
    return NotedValue(mean, None) if math.isfinite(mean) else NotedValue(math.nan, undefined)


def _too_narrow(width: int) -> str:
    return f"expected at least {DIRECTIONS} features, got {width}"
