"""Holm's correction for multiple tests."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that rejecting those up to a level keeps the family-wise error rate at or below that level.

    The k-th smallest of m p-values is multiplied by m - k + 1, replaced by the previous result if that is larger, and
    capped at 1 (Holm 1979). The correction is valid under any dependence between the tests. The result is in the order
    of `p_values`.
    """
    assert all(0 <= p <= 1 for p in p_values), "not p-values"
    m = len(p_values)
    adjusted = [1.0] * m
    floor = 0.0
    for rank, i in enumerate(sorted(range(m), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted
