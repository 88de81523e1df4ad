"""Summary statistics over seeds, and their text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from optbench.report.numbers import UNDEFINED, fixed, interval

Statistic = Literal["mean", "median"]


@dataclass(frozen=True)
class Spread:
    """Statistics of `n` values: mean and sample standard deviation (none if n = 1), median, quartiles, extremes."""

    mean: float
    sd: float | None
    n: int
    median: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        """Compute the spread of the finite values, with NumPy's default quartiles; None if no value is finite."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75]).tolist()
        sd = statistics.stdev(finite) if len(finite) > 1 else None
        return Spread(statistics.fmean(finite), sd, len(finite), middle, (low, high), (min(finite), max(finite)))


SpreadText: TypeAlias = Callable[[Spread | None, int], str]
"""A function that formats a spread with a given number of decimals."""


def spread_text(spread: Spread | None, digits: int, statistic: Statistic = "mean") -> str:
    """Format a spread as `0.951±0.002` or `0.951 [0.949, 0.953]`, a single trial as its value, and None as `–`."""
    if spread is None:
        return UNDEFINED
    if statistic == "median":
        middle = fixed(spread.median, digits)
        return middle if spread.n == 1 else f"{middle} {interval(spread.quartiles, digits)}"
    mean = fixed(spread.mean, digits)
    return mean if spread.sd is None else f"{mean}±{fixed(spread.sd, digits)}"
