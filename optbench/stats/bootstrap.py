"""Percentile bootstrap over seeds (Efron 1979): the same resamples are used for everything measured on the seeds.

Legend: `n` seeds, `B` resamples. These intervals are too narrow for few seeds (nominal 95% covers about 84% at
5 seeds, 92% at 10): they indicate uncertainty, and no verdict is based on them.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
"""Seed of the resamples, fixed so that the same data always give the same interval."""


def resampled_means(values: Array) -> Array:
    """Return means (..., B) of values (..., n) over n seeds drawn with replacement; all rows share the draws."""
    means: Array = values[..., _draws(values.shape[-1])].mean(axis=-1)
    return means


def percentile_interval(resampled: Array, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval that holds the central `level` of a statistic's resampled values (B,), in their unit.

    Quantiles are interpolated linearly.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]).tolist()
    return low, high


@functools.cache
def _draws(n: int) -> NDArray[np.int64]:
    """Return the indices of the drawn seeds, (B, n)."""
    return np.random.default_rng(SEED).integers(n, size=(RESAMPLES, n))
