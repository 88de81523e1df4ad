"""Comparisons of two solutions: trained networks with the same initial weights.

Legend: `P` weights of one network in one vector; `N` examples; `d` features; `K` points on the line between the two.

Everything is computed in float64. Each metric takes `TwoSolutions` and returns a `NotedValue`: a number, or NaN with
the reason. Neither higher nor lower values are better. Interpret each metric relative to its null: its value for the
same optimizer and initial weights with another data order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.metrics import landscape, similarity
from optbench.metrics.landscape import NotedValue

DIRECTIONS = 10
"""The dimension k of the subspace overlap: one direction per class of MNIST."""


@dataclass(frozen=True)
class Solution:
    """One solution's data for comparisons, computed once.

    weights: (P,) float64.
    predictions: (N,) labels.
    centred: (N, d) float64, the features minus their mean.
    width: d.
    directions: (k, d), the leading directions of the uncentred features; None if d < k.
    alignments: ‖XᵀX‖²_F of the centred features X, without and with debiasing, for the denominator of CKA.
    """

    weights: Tensor
    predictions: Tensor
    centred: Tensor
    width: int
    directions: Tensor | None
    alignments: tuple[float, float]

    @staticmethod
    def of(weights: Tensor, features: Tensor, predictions: Tensor) -> Solution:
        """Build a solution from weights (P,), and features (N, d) and predictions (N,) on the same examples."""
        centred = similarity.centred(features)
        width = features.shape[-1]
        return Solution(
            weights=weights.detach().double(),
            predictions=predictions,
            centred=centred,
            width=width,
            directions=similarity.leading_directions(features, DIRECTIONS) if width >= DIRECTIONS else None,
            alignments=(_self_alignment(centred, False), _self_alignment(centred, True)),
        )


@dataclass(frozen=True)
class TwoSolutions:
    """Two solutions a and b, their common initial weights (P,), and the loss and accuracy on the line from a to b.

    losses, accuracies: (K,) at K evenly spaced points, including both ends; None if no barrier is requested.
    """

    a: Solution
    b: Solution
    start: Tensor
    losses: Tensor | None = None
    accuracies: Tensor | None = None


def linear_cka(pair: TwoSolutions, *, debiased: bool = False) -> NotedValue:
    """Return `similarity.linear_cka` of the two solutions' features, using the precomputed alignments."""
    examples = pair.a.centred.shape[0]
    if debiased and examples < 4:
        return NotedValue(math.nan, f"expected at least 4 examples, got {examples}")
    one, other = (solution.alignments[debiased] for solution in (pair.a, pair.b))
    if not (one > 0 and other > 0 and math.isfinite(one) and math.isfinite(other)):
        return NotedValue(math.nan, "the features of a solution do not vary, or are not finite")
    cross = similarity.alignment(pair.a.centred, pair.b.centred, debiased).item()
    return _reading(cross / (math.sqrt(one) * math.sqrt(other)), "the features overflow")


def subspace_overlap(pair: TwoSolutions) -> NotedValue:
    """Return `similarity.subspace_overlap` of the k = 10 leading directions of the uncentred features."""
    if pair.a.directions is None or pair.b.directions is None:
        return NotedValue(math.nan, _too_narrow(pair))
    # The k orthonormal directions replace the features, because the overlap depends only on their subspaces.
    overlap = similarity.subspace_overlap(pair.a.directions, pair.b.directions, DIRECTIONS).item()
    return _reading(overlap, f"the {DIRECTIONS} leading directions of a solution are not determined")


def subspace_overlap_chance(pair: TwoSolutions) -> NotedValue:
    """Return k / d, the mean overlap of two random subspaces."""
    if pair.a.width < DIRECTIONS:
        return NotedValue(math.nan, _too_narrow(pair))
    return NotedValue(DIRECTIONS / pair.a.width, None)


def prediction_disagreement(pair: TwoSolutions) -> NotedValue:
    """Return `similarity.prediction_disagreement`: the share of examples that the two solutions label differently."""
    share = similarity.prediction_disagreement(pair.a.predictions, pair.b.predictions).item()
    return _reading(share, "no examples")


def loss_barrier(pair: TwoSolutions) -> NotedValue:
    """Return `landscape.barrier` of the training loss on the line between the two solutions."""
    assert pair.losses is not None
    return _reading(landscape.barrier(pair.losses).item(), landscape.barrier_note(pair.losses))


def accuracy_barrier(pair: TwoSolutions) -> NotedValue:
    """Return `landscape.accuracy_barrier` of the test accuracy on the line between the two solutions."""
    assert pair.accuracies is not None
    return _reading(landscape.accuracy_barrier(pair.accuracies).item(), landscape.barrier_note(pair.accuracies))


def weight_distance(pair: TwoSolutions) -> NotedValue:
    """Return 2 ‖a - b‖₂ / (‖a - w₀‖₂ + ‖b - w₀‖₂), which is at most 2.

    The result is 0 for equal weights, and √2 for two displacements of equal length at an angle of 90°.
    """
    apart = torch.linalg.vector_norm(pair.a.weights - pair.b.weights).item()
    ways = [landscape.distance_from_init(solution.weights, pair.start).item() for solution in (pair.a, pair.b)]
    if sum(ways) == 0:
        return NotedValue(math.nan, "neither solution has moved")
    return _reading(2.0 * apart / sum(ways), "the weights are not finite")


def displacement_angle(pair: TwoSolutions) -> NotedValue:
    """Return `landscape.displacement_angle`: the angle in degrees between the displacements of the two solutions."""
    angle = landscape.displacement_angle(pair.start, pair.a.weights, pair.b.weights).item()
    return _reading(angle, "a solution has not moved, or is not finite")


def _self_alignment(centred: Tensor, debiased: bool) -> float:
    if debiased and centred.shape[0] < 4:
        return math.nan
    return similarity.alignment(centred, centred, debiased).item()


def _too_narrow(pair: TwoSolutions) -> str:
    return f"expected at least {DIRECTIONS} features, got {pair.a.width}"


def _reading(value: float, reason: str | None) -> NotedValue:
    return NotedValue(value, None) if math.isfinite(value) else NotedValue(math.nan, reason)
