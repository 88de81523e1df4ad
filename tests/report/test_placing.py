"""Names at the ends of lines keep their order and distance, stay inside, and move no further than necessary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from optbench.report.figures.placing import spaced

PLACES = st.lists(st.floats(0, 1), min_size=1, max_size=16)


@given(PLACES, st.floats(0, 0.3))
def test_positions_keep_order_and_distance_and_stay_on_the_axis(places: list[float], gap: float) -> None:
    found = spaced(places, gap)
    room = min(gap, 1 / max(1, len(places) - 1))
    assert min(found) >= -1e-9
    assert max(found) <= 1 + 1e-9
    assert all(b - a >= room - 1e-9 for a, b in zip(sorted(found), sorted(found)[1:], strict=False))
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert [found[i] for i in order] == sorted(found)


def test_positions_that_are_far_enough_apart_do_not_move() -> None:
    assert spaced([0.9, 0.1, 0.5], 0.2) == pytest.approx([0.9, 0.1, 0.5])


def test_positions_are_the_nearest_possible() -> None:
    places, gap = np.array([0.02, 0.03, 0.5, 0.52, 0.97, 0.98, 0.99]), 0.08
    apart = {"type": "ineq", "fun": lambda x: np.diff(x) - gap}
    best = minimize(lambda x: ((x - places) ** 2).sum(), np.linspace(0, 1, 7), bounds=[(0, 1)] * 7, constraints=apart)
    assert best.success
    np.testing.assert_allclose(spaced(places.tolist(), gap), best.x, atol=1e-4)
