"""The exact Wilcoxon signed-rank test with the matching Hodges-Lehmann estimate and interval.

Legend: `d` (n,) differences as floats, one per pair, never NaN; ±inf has the highest rank. W is the sum of the ranks of
|d| over the positive d. Estimates and intervals are in the unit of d. All results are invariant under permutation
of pairs.

Source: Hollander, Wolfe & Chicken 2014, Nonparametric Statistical Methods, §3.1-3.3; Pratt & Gibbons 1981 for
conditioning on ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

EXACT_UP_TO = 200
"""Number of pairs up to which null distributions are exact; above it, a normal approximation is used."""
DIGITS = 12
"""Significant digits kept, relative to the largest difference. Further digits are treated as rounding error."""


@dataclass(frozen=True)
class SignedRank:
    """A signed-rank test.

    p: two-sided p-value.
    positive, negative: the sums of the ranks of the positive and of the negative differences.
    n: number of non-zero differences; only these are ranked.
    exact: True if p comes from the exact null distribution (n ≤ 200), False if from its normal approximation.
    """

    p: float
    positive: float
    negative: float
    n: int
    exact: bool


def round_differences(d: Array, magnitude: float = 0.0) -> Array:
    """Round d (n,) to 12 significant digits of the largest finite |d|, or of `magnitude` if that is larger.

    Rounding makes ties exact: .05 - .02 and .03, for example, differ in the last bit. ±inf is unchanged.

    magnitude: if d was computed by subtraction, the largest |operand|, because the rounding error is relative to it.
    """
    assert not np.isnan(d).any(), "a difference is NaN"
    largest = np.max(np.abs(d), where=np.isfinite(d), initial=magnitude)
    if largest == 0:
        return d + 0.0  # removes minus zero
    # Beyond 10^300 the scaling in np.round would overflow.
    decimals = min(DIGITS - 1 - math.floor(math.log10(largest)), 300)
    rounded: Array = np.round(d, decimals) + 0.0
    return rounded


def smallest_p(n: int) -> float:
    """Return the smallest two-sided p that n pairs can reach: 2/2ⁿ, if all differences have the same sign."""
    return min(1.0, 2 * 0.5**n)


def signed_rank_test(d: Array) -> SignedRank:
    """Test whether d (n,) is symmetric about 0, two-sided (Wilcoxon 1945).

    Zeros are left out (scipy's `zero_method="wilcox"`; p = 1 if all are zero). Tied |d| share their mean rank. The null
    distribution, in which every sign is equally likely, is computed from these ranks, so p is exact even with ties.

    With more than 200 non-zero differences, p comes from a normal approximation without continuity correction, and
    `exact` is False. The approximation has the variance of the null distribution, which accounts for ties.
    """
    d = round_differences(d)
    d = d[d != 0]
    doubled = _doubled_midranks(np.abs(d))
    total = int(doubled.sum())
    positive = int(doubled[d > 0].sum())
    low = min(positive, total - positive)
    exact = len(d) <= EXACT_UP_TO
    if exact:
        # The null distribution is symmetric, so p is twice the lower tail.
        p = 2 * float(_null(tuple(np.sort(doubled).tolist()))[: low + 1].sum())
    else:
        p = math.erfc((total / 2 - low) / math.sqrt(float((doubled**2).sum()) / 4) / math.sqrt(2))
    return SignedRank(min(1.0, p), positive / 2, (total - positive) / 2, len(d), exact)


def walsh_averages(d: Array) -> Array:
    """Return (d_i + d_j)/2 for all i ≤ j, ascending, rounded by `round_differences`: (n,) -> (n(n+1)/2,).

    +inf and -inf, from two pairs in which opposite sides diverged, average to 0.
    """
    i, j = _pairs(len(d))
    return np.sort(round_differences(_midpoint(d[i], d[j])))


def hodges_lehmann(d: Array) -> float:
    """Return the median of the Walsh averages of d (n,), n ≥ 1 (Hodges & Lehmann 1963).

    The result is ±inf if too many d are infinite.
    """
    return middle(walsh_averages(d))


def interval(d: Array, level: float = 0.95) -> tuple[float, float] | None:
    """Return the confidence interval that matches the test: the shifts of d that the test does not reject.

    The endpoints are Walsh averages and can be ±inf. With n > 200, their ranks come from a normal approximation. Return
    None if even the widest interval does not reach the level (n ≤ 5 at .95).

    d: (n,), including zeros.
    level: the minimum coverage, 0 < level < 1.
    """
    return bounds(walsh_averages(d), len(d), level)


def detectable(d: Array, level: float = 0.95) -> float | None:
    """Return the smallest effect that n seeds with this spread could have shown to be significant.

    This is the larger of the distances from the estimate to the endpoints of `interval(d, level)`: with a larger
    effect, the interval excludes 0. Return None if n pairs cannot reach the level or the interval is unbounded.
    """
    averages = walsh_averages(d)
    ends = bounds(averages, len(d), level)
    if ends is None or math.isinf(ends[0]) or math.isinf(ends[1]):
        return None
    centre = middle(averages)
    longer = max(centre - ends[0], ends[1] - centre)
    return float(round_differences(np.array([longer]))[0])


def middle(averages: Array) -> float:
    """Return the Hodges-Lehmann estimate, the median of the given Walsh averages."""
    n = len(averages)
    assert n, "nothing to take the median of"
    low, high = averages[(n - 1) // 2], averages[n // 2]
    # np.median returns NaN between -inf and +inf.
    return float(low) if low == high else float(round_differences(_midpoint(low[None], high[None]))[0])


def bounds(averages: Array, n: int, level: float) -> tuple[float, float] | None:
    """Return the same interval as `interval`, given the Walsh averages of the n differences."""
    assert 0 < level < 1
    rank = _lowest_rank(n, level)
    return None if rank is None else (float(averages[rank]), float(averages[-1 - rank]))


def _midpoint(x: Array, y: Array) -> Array:
    with np.errstate(invalid="ignore"):
        mean = (x + y) / 2
    mean[np.isnan(mean)] = 0.0
    return mean


@lru_cache(maxsize=32)
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of all pairs i ≤ j < n, as two cached arrays (n(n+1)/2,), which must not be modified."""
    i, j = np.triu_indices(n)
    return i, j


def _doubled_midranks(sizes: Array) -> NDArray[np.int64]:
    """Return twice the mean rank of each |d|, which is always an integer: (n,) -> (n,)."""
    _, group, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    doubled: NDArray[np.int64] = (2 * np.cumsum(counts) - counts + 1).astype(np.int64)[group]
    return doubled


@lru_cache(maxsize=256)
def _null(doubled: tuple[int, ...]) -> Array:
    """Return the probabilities of 2W = 0, 1, ..., Σ doubled if W includes each rank with probability 1/2; read-only."""
    probabilities = np.zeros(sum(doubled) + 1)
    probabilities[0] = 1.0
    for rank in doubled:
        # Halving is exact and sums of positive numbers have no cancellation; up to 50 ranks the result is exact.
        taken = probabilities[:-rank] / 2
        probabilities /= 2
        probabilities[rank:] += taken
    probabilities.flags.writeable = False
    return probabilities


@lru_cache(maxsize=256)
def _lowest_rank(n: int, level: float) -> int | None:
    """Return the largest k with P(W ≤ k) ≤ (1 - level)/2 for n untied pairs; None if there is no such k."""
    tail = (1 - level) / 2
    if n <= EXACT_UP_TO:
        cumulative = np.cumsum(_null(tuple(range(2, 2 * n + 1, 2)))[::2])
        rank = int(np.searchsorted(cumulative, tail, side="right")) - 1
    else:
        sd = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        rank = math.floor(n * (n + 1) / 4 + NormalDist().inv_cdf(tail) * sd)
    return rank if rank >= 0 else None
