"""Text charts for a terminal: sparklines of eight heights, and bars in eighths of a character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

HEIGHTS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
UNDEFINED = "·"
LONGEST = 40
"""Maximum length of a sparkline, so that it fits next to a name."""


def spark(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> str:
    """Return one character per value, for the eighth of [low, high] that contains the value; `·` for NaN.

    Values outside the interval are clipped. Requires low < high.
    """
    return "".join(UNDEFINED if math.isnan(v) else HEIGHTS[min(int(_share(v, low, high) * 8), 7)] for v in values)


def thinned(values: Sequence[float]) -> Sequence[float]:
    """Return the values, or the means of `LONGEST` sections of nearly equal length if there are more values."""
    if len(values) <= LONGEST:
        return values
    bounds = [len(values) * i // LONGEST for i in range(LONGEST + 1)]
    return [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]


def bar(value: float, low: float, high: float, width: int) -> str:
    """Return a bar that is full for value ≥ high, padded with blanks to exactly `width` characters; `·` for NaN.

    Requires low < high.
    """
    if math.isnan(value):
        return UNDEFINED.ljust(width)[:width]
    full, rest = divmod(round(_share(value, low, high) * width * 8), 8)
    return ("█" * full + EIGHTHS[rest].strip()).ljust(width)


def _share(value: float, low: float, high: float) -> float:
    assert low < high
    return (min(max(value, low), high) - low) / (high - low)
