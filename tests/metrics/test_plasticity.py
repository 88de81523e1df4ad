"""Measures of plasticity: worked examples, plain loops, SciPy, and properties implied by their definitions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import theilslopes

from optbench.metrics.plasticity import (
    against_fresh,
    late_online_accuracy,
    note,
    online_accuracy,
    plasticity_kept,
    plasticity_slope,
    window_means,
)

Sequences = NDArray[np.float64]
FALLING = np.linspace(0.9, 0.7, 100)
RISING_THEN_FLAT = np.concatenate([np.linspace(0.5, 0.9, 20), np.full(80, 0.8)])
FRESH = np.full(100, 0.85)
ALL: list[Callable[[Sequences], Sequences]] = [
    online_accuracy,
    late_online_accuracy,
    plasticity_kept,
    plasticity_slope,
    lambda accuracy: against_fresh(accuracy, np.full(accuracy.shape[-1], 0.5)),
]


def kept_by_loops(a: list[float]) -> float:
    w = max(1, len(a) // 10)
    windows = [sum(a[k : k + w]) / w for k in range(len(a) - w + 1)]
    return sum(a[-w:]) / w / max(windows)


@st.composite
def sequences(draw: st.DrawFn, smallest: int = 2) -> Sequences:
    """Draw accuracies (seeds, T) above 0."""
    shape = draw(st.integers(1, 4)), draw(st.integers(smallest, 45))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(1, 101, shape) / 100


@pytest.mark.parametrize(
    ("accuracy", "kept", "slope"), [(FALLING, 0.79592, -0.20202), (RISING_THEN_FLAT, 0.96508, 0.0)]
)
def test_measures_agree_with_worked_examples(accuracy: Sequences, kept: float, slope: float) -> None:
    assert float(plasticity_kept(accuracy)) == pytest.approx(kept, abs=5e-6)
    assert float(plasticity_slope(accuracy)) == pytest.approx(slope, abs=5e-6)


@settings(deadline=None, max_examples=50)
@given(sequences())
def test_means_are_taken_over_all_tasks_and_over_windows(accuracy: Sequences) -> None:
    tasks, w = accuracy.shape[1], max(1, accuracy.shape[1] // 10)
    np.testing.assert_allclose(online_accuracy(accuracy), [sum(a) / tasks for a in accuracy])
    np.testing.assert_allclose(late_online_accuracy(accuracy), [sum(a[-w:]) / w for a in accuracy])
    windows = [[a[k : k + w].mean() for k in range(tasks - w + 1)] for a in accuracy]
    np.testing.assert_allclose(window_means(accuracy), windows)


def test_against_fresh_compares_the_last_tenth() -> None:
    assert float(against_fresh(FALLING, FRESH)) == pytest.approx(FALLING[-10:].mean() - 0.85)
    assert float(against_fresh(FALLING, FALLING)) == 0
    by_seed = against_fresh(np.stack([FALLING, RISING_THEN_FLAT]), FRESH)
    np.testing.assert_allclose(by_seed, [FALLING[-10:].mean() - 0.85, -0.05])


@settings(deadline=None, max_examples=50)
@given(sequences())
def test_measures_agree_with_plain_loops_and_scipy(accuracy: Sequences) -> None:
    np.testing.assert_allclose(plasticity_kept(accuracy), [kept_by_loops(list(a)) for a in accuracy], rtol=1e-12)
    slopes = plasticity_slope(accuracy) / 100
    np.testing.assert_allclose(slopes, [theilslopes(a).slope for a in accuracy], atol=1e-14)
    pairs = [[(a[j] - a[i]) / (j - i) for i, j in combinations(range(len(a)), 2)] for a in accuracy]
    np.testing.assert_allclose(slopes, [median(found) for found in pairs], atol=1e-14)


@settings(deadline=None, max_examples=50)
@given(sequences())
def test_the_order_of_tasks_affects_measures_as_defined(accuracy: Sequences) -> None:
    """A rising sequence keeps 1 and has slope ≥ 0, reversing negates the slope, and no order keeps more than 1."""
    rising = np.sort(accuracy, axis=-1)
    assert (plasticity_kept(rising) == 1).all()
    assert (plasticity_slope(rising) >= 0).all()
    assert (plasticity_slope(accuracy) == -plasticity_slope(accuracy[:, ::-1])).all()
    assert (plasticity_kept(accuracy) <= 1).all()
    assert (plasticity_kept(rising[:, ::-1]) <= plasticity_kept(rising)).all()


@settings(deadline=None, max_examples=30)
@given(sequences(), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_scaling_and_permuting_seeds_carry_over(accuracy: Sequences, seed: int, factor: float) -> None:
    order = np.random.default_rng(seed).permutation(len(accuracy))
    for metric in ALL:
        np.testing.assert_array_equal(metric(accuracy[order]), metric(accuracy)[order])
    np.testing.assert_allclose(plasticity_kept(factor * accuracy), plasticity_kept(accuracy))
    np.testing.assert_allclose(plasticity_slope(factor * accuracy), factor * plasticity_slope(accuracy), atol=1e-12)


@pytest.mark.parametrize("tasks", [1, 2, 9, 10, 19, 120])
def test_a_constant_sequence_keeps_exactly_1_and_has_slope_0(tasks: int) -> None:
    level = np.full(tasks, 0.1 + 0.2)
    assert float(plasticity_kept(level)) == 1
    assert float(against_fresh(level, level)) == 0
    if tasks > 1:
        assert float(plasticity_slope(level)) == 0


def test_a_network_that_stops_learning_after_the_first_task_is_detected() -> None:
    frozen = np.concatenate([[0.7], np.full(99, 0.1)])
    assert float(plasticity_kept(frozen)) == pytest.approx(0.1 / 0.16)
    assert float(against_fresh(frozen, FRESH)) == pytest.approx(-0.75)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_sequence_is_nan_and_does_not_affect_others(bad: float) -> None:
    accuracy = np.stack([FALLING, RISING_THEN_FLAT])
    broken = accuracy.copy()
    broken[0, 3] = bad
    for metric in ALL:
        found = metric(broken)
        assert np.isnan(found[0])
        assert found[1] == metric(accuracy)[1]
    assert np.isnan(against_fresh(accuracy, broken)).tolist() == [True, False]
    for of in ("kept", "slope", "level"):
        assert note(broken[0], of=of) == "the online accuracy has non-finite entries"
        assert note(broken[1], of=of) is None


def test_undefined_values_have_a_note() -> None:
    assert np.isnan(plasticity_slope([0.5]))
    assert note([0.5], of="slope") == "expected at least 2 tasks, got 1"
    assert note([0.5], of="kept") is None
    assert np.isnan(plasticity_kept([0.0, 0.0]))
    assert note([0.0, 0.0], of="kept") == "the online accuracy is 0 on every task"
    assert note([0.0, 0.0], of="level") is None
    assert plasticity_slope(np.zeros((2, 3, 4))).shape == (2, 3)
    assert plasticity_kept(np.zeros((0, 4))).shape == plasticity_slope(np.zeros((0, 4))).shape == (0,)


@pytest.mark.parametrize("metric", [plasticity_kept, plasticity_slope, partial(against_fresh, fresh=[0.5])])
def test_wrong_shapes_are_refused(metric: Callable[[object], object]) -> None:
    for wrong in (0.5, np.zeros((3, 0))):
        with pytest.raises(ValueError, match=r"expected accuracies of shape \(\.\.\., T\) with T ≥ 1, got "):
            metric(wrong)


def test_fresh_networks_on_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected fresh networks on 100 tasks, got 99"):
        against_fresh(FALLING, FALLING[1:])
