"""Comparison of one metric of two optimizers, seed by seed: direction, size and uncertainty of the difference.

Legend: `n` seeds. Each seed gives a pair of trials with the same initial weights and data order. d = a - b.

A diverged seed is never dropped silently. In a directed metric it takes the worst rank: d is infinite in favour of
the side that did not diverge, or 0 if both sides diverged. A neutral metric has no worst rank, so the pair is not used.
Every unused pair is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from optbench.metrics.metric import Direction
from optbench.stats.signed_rank import bounds, middle, round_differences, signed_rank_test, walsh_averages

Array: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class PairedValues:
    """One metric of optimizers A and B over the same seeds, in the same order.

    a, b: (n,) values, NaN where undefined; the value of a diverged trial is ignored.
    diverged_a, diverged_b: (n,) whether the trial of A, or of B, diverged.
    """

    a: Array
    b: Array
    diverged_a: Flags
    diverged_b: Flags

    def __post_init__(self) -> None:
        shapes = {self.a.shape, self.b.shape, self.diverged_a.shape, self.diverged_b.shape}
        assert len(shapes) == 1, f"pairs of different lengths: {shapes}"
        assert self.a.ndim == 1


@dataclass(frozen=True)
class PairedResult:
    """The result of comparing one metric over all pairs.

    pairs: number of seeds common to both sides.
    n: number of pairs used by the test.
    diverged_a, diverged_b: number of pairs in which A, or B, diverged.
    undefined: number of pairs not used because a side has no value although it did not diverge. In all other unused
    pairs, a side diverged.
    median_a, median_b: median of the values of A, or of B, except those of diverged trials, in the metric's unit; None
    if there are none.
    difference: Hodges-Lehmann estimate of a - b, in the metric's unit; ±inf if too many seeds of one side diverged;
    None if n = 0.
    interval, interval_90: the matching 95% and 90% intervals; None if n is too small for the level.
    p: p-value of the exact signed-rank test; None if n = 0.
    d_z: mean / sample standard deviation of d (Cohen 1988); None if n < 2, some d is infinite, or all d are equal.
    rank_biserial: (W+ - W-)/(W+ + W-), from -1 to 1 (Kerby 2014); None if no d differs from 0.
    wins: fraction of the used pairs in which A is better (higher, for a neutral metric); ties are not wins. None if
    n = 0.
    differences: (n,) d of the used pairs, in seed order.
    diverged_both: number of pairs in which both diverged.
    """

    pairs: int
    n: int
    diverged_a: int
    diverged_b: int
    undefined: int
    median_a: float | None
    median_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    interval_90: tuple[float, float] | None
    p: float | None
    d_z: float | None
    rank_biserial: float | None
    wins: float | None
    differences: tuple[float, ...]
    diverged_both: int = 0

    @property
    def identical(self) -> bool:
        """Whether both sides have equal values in every pair that the test uses."""
        return self.n > 0 and not any(self.differences) and not self.diverged_both


def compare_paired(pairs: PairedValues, direction: Direction) -> PairedResult:
    """Compare A with B over their pairs by the exact signed-rank test and the matching interval.

    direction: which values are better; determines the rank of a diverged seed and what counts as a win.
    """
    value_a, value_b = np.isfinite(pairs.a) & ~pairs.diverged_a, np.isfinite(pairs.b) & ~pairs.diverged_b
    known = (value_a | pairs.diverged_a) & (value_b | pairs.diverged_b)
    used = known if direction != "neutral" else value_a & value_b
    d = _differences(pairs, value_a & value_b, direction)[used]
    n = len(d)
    averages = walsh_averages(d)  # (n(n+1)/2,)
    test = signed_rank_test(d)
    ranks = test.positive + test.negative
    ahead = d < 0 if direction == "lower" else d > 0
    return PairedResult(
        pairs=len(pairs.a),
        n=n,
        diverged_a=int(pairs.diverged_a.sum()),
        diverged_b=int(pairs.diverged_b.sum()),
        undefined=int((~known).sum()),
        median_a=_median(pairs.a[value_a]),
        median_b=_median(pairs.b[value_b]),
        difference=middle(averages) if n else None,
        interval=bounds(averages, n, 0.95),
        interval_90=bounds(averages, n, 0.90),
        p=test.p if n else None,
        d_z=_standardised_mean(d),
        rank_biserial=(test.positive - test.negative) / ranks if ranks else None,
        wins=float(ahead.mean()) if n else None,
        differences=tuple(d.tolist()),
        diverged_both=int((pairs.diverged_a & pairs.diverged_b).sum()),
    )


def _differences(pairs: PairedValues, both: Flags, direction: Direction) -> Array:
    """Return d of every pair, (n,); meaningless for unused pairs."""
    d = np.zeros(len(pairs.a))
    a, b = pairs.a[both], pairs.b[both]
    # Metrics are of order 1, or derived from accuracies of order 1 and no more precise: a forgetting of 1e-9 is noise.
    magnitude = float(np.abs(np.concatenate((a, b))).max(initial=1.0))
    d[both] = round_differences(a - b, magnitude)
    worst = np.inf if direction == "lower" else -np.inf
    d[pairs.diverged_a & ~pairs.diverged_b] = worst
    d[pairs.diverged_b & ~pairs.diverged_a] = -worst
    return d


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None


def _standardised_mean(d: Array) -> float | None:
    # Equal differences are a separate case because their computed standard deviation need not be exactly 0.
    if len(d) < 2 or not np.isfinite(d).all() or (d == d[0]).all():
        return None
    return float(d.mean() / d.std(ddof=1))
