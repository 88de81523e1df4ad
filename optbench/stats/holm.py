"""Holm's correction: several tests, one error rate."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false rejection among them stays below the level each is held to.

    The k-th smallest of m is multiplied by m - k + 1, is at least its predecessor, and at most 1 (Holm 1979); valid
    however the tests depend on each other. The order of the result is that of `p_values`.
    """
    assert all(0 <= p <= 1 for p in p_values), "not p-values"
    m = len(p_values)
    adjusted = [1.0] * m
    floor = 0.0
    for rank, i in enumerate(sorted(range(m), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted
