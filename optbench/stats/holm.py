"""Holm's correction of several p-values."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the family-wise error rate stays below the level applied to each.

    The k-th smallest of m is multiplied by m - k + 1, is at least its predecessor, and at most 1 (Holm 1979); valid
    under any dependence between the tests. The result has the order of `p_values`.
    """
    assert all(0 <= p <= 1 for p in p_values), "not p-values"
    m = len(p_values)
    adjusted = [1.0] * m
    floor = 0.0
    for rank, i in enumerate(sorted(range(m), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted
