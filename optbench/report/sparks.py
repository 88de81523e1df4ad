"""Miniatures of figures for a terminal: a line of eight heights, and a bar in eighths of a character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

HEIGHTS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
UNDEFINED = "·"
LONGEST = 40
"""Characters of a line, so that it fits beside a name."""


def spark(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> str:
    """One character per value: the height that stands for its eighth of [low, high]; `·` for NaN.

    Values outside are drawn at the nearer end. Needs low < high.
    """
    return "".join(UNDEFINED if math.isnan(v) else HEIGHTS[min(int(_share(v, low, high) * 8), 7)] for v in values)


def thinned(values: Sequence[float]) -> Sequence[float]:
    """The values, or where they are more than a line bears, the means of `LONGEST` parts of nearly equal length."""
    if len(values) <= LONGEST:
        return values
    bounds = [len(values) * i // LONGEST for i in range(LONGEST + 1)]
    return [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]


def bar(value: float, low: float, high: float, width: int) -> str:
    """A bar from the left, exactly `width` characters with its blanks, full where value ≥ high; `·` for NaN.

    Needs low < high.
    """
    if math.isnan(value):
        return UNDEFINED.ljust(width)[:width]
    full, rest = divmod(round(_share(value, low, high) * width * 8), 8)
    return ("█" * full + EIGHTHS[rest].strip()).ljust(width)


def _share(value: float, low: float, high: float) -> float:
    assert low < high
    return (min(max(value, low), high) - low) / (high - low)
