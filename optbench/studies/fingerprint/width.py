"""The width of the learning-rate optimum.

The width is the number of decades of learning rates over which an optimizer learns nearly as well as with the best one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

WITHIN = 0.01
"""Maximum distance from the best score, as a share of that score."""


@dataclass(frozen=True)
class Width:
    """The width in decades of learning rates.

    at_least: whether the optimum reaches an end of the tried range and may therefore be wider.
    """

    decades: float
    at_least: bool

    def __str__(self) -> str:
        return f"{'at least ' if self.at_least else ''}{self.decades:.1f} decades"


def width(tried: Iterable[tuple[float, float]]) -> Width | None:
    """Return the width of the range of learning rates whose scores are within 1% of the best score.

    Scores are interpolated linearly in the logarithm of the learning rate. If a learning rate has no score (NaN), e.g.
    because training diverged, the range ends at the neighbouring learning rate. Return None if no score is above 0.

    tried: pairs of learning rate and score.

    Example:
        >>> width([(0.001, 0.5), (0.01, 0.9), (0.1, 0.9), (1.0, 0.0)])
        Width(decades=1.0325, at_least=False)
    """
    points = sorted((math.log10(rate), score) for rate, score in tried if rate > 0)
    known = [score for _, score in points if math.isfinite(score)]
    if not known or (best := max(known)) <= 0:
        return None
    needed = (1 - WITHIN) * best
    top = next(i for i, (_, score) in enumerate(points) if score == best)
    ends, open_ends = [], []
    for step in (-1, 1):
        i = top
        while 0 <= i + step < len(points) and points[i + step][1] >= needed:
            i += step
        beyond = i + step
        open_ends.append(not 0 <= beyond < len(points))
        x, y = points[i]
        if not open_ends[-1] and math.isfinite(points[beyond][1]):
            x_out, y_out = points[beyond]
            x += (x_out - x) * (y - needed) / (y - y_out)
        ends.append(x)
    return Width(round(ends[1] - ends[0], 4), any(open_ends))
