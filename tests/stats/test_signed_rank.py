"""The signed-rank test, its interval and Holm's correction against SciPy, slow references, examples and symmetries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from optbench.stats.holm import holm
from optbench.stats.signed_rank import (
    detectable,
    hodges_lehmann,
    interval,
    round_differences,
    signed_rank_test,
    smallest_p,
    walsh_averages,
)

Array = NDArray[np.float64]
EXAMPLE = np.array([0.03, 0.05, 0.02, 0.04, 0.06, 0.01, 0.03, 0.05, -0.01, 0.02])


def array(values: list[float]) -> Array:
    return np.array(values, dtype=np.float64)


# Few distinct values, so that ties and zeros are common.
tied = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12).map(array)
# Includes infinities, for properties of any input.
any_differences = st.lists(
    st.one_of(st.integers(-4, 4).map(float), st.floats(-5, 5), st.sampled_from([-math.inf, math.inf])),
    min_size=1,
    max_size=12,
).map(array)


def untied(rng: np.random.Generator, n: int) -> Array:
    return rng.normal(0.4, 1.0, n)


def p_by_enumeration(d: Array) -> float:
    """Compute p by enumerating the signs of all ranks, the definition of the test, in 2ⁿ steps."""
    d = d[d != 0]
    if len(d) == 0:
        return 1.0
    ranks = scipy_stats.rankdata(np.abs(d))
    signs = np.array(list(itertools.product([0, 1], repeat=len(d))))
    null = signs @ ranks
    observed = ranks[d > 0].sum()
    # Midranks are multiples of 1/2, so sums are exact.
    return min(1.0, 2 * min(float((null <= observed).mean()), float((null >= observed).mean())))


def test_test_and_interval_agree_with_a_worked_example() -> None:
    test = signed_rank_test(EXAMPLE)
    assert (test.p, test.n, test.exact) == (6 / 1024, 10, True)
    assert (test.positive, test.negative) == (53.5, 1.5)
    assert hodges_lehmann(EXAMPLE) == 0.03
    assert interval(EXAMPLE) == (0.015, 0.045)
    assert detectable(EXAMPLE) == 0.015


@settings(max_examples=150, deadline=None)
@given(tied)
def test_p_agrees_with_the_enumeration_of_signs(d: Array) -> None:
    assert signed_rank_test(d).p == pytest.approx(p_by_enumeration(d), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 10, 25, 50, 51, 120])
def test_p_agrees_with_scipy_without_ties(n: int) -> None:
    d = untied(np.random.default_rng(n), n)
    ours = signed_rank_test(d)
    theirs = scipy_stats.wilcoxon(d, method="exact")
    assert ours.exact
    assert ours.p == pytest.approx(float(theirs.pvalue), rel=1e-9)
    assert min(ours.positive, ours.negative) == theirs.statistic


@pytest.mark.parametrize("seed", range(5))
def test_p_agrees_with_scipy_with_ties_and_zeros(seed: int) -> None:
    d = np.random.default_rng(seed).integers(-2, 5, 9).astype(np.float64)
    all_signs = scipy_stats.PermutationMethod(n_resamples=2**9)
    theirs = scipy_stats.wilcoxon(d[d != 0], method=all_signs, zero_method="wilcox")
    assert signed_rank_test(d).p == pytest.approx(float(theirs.pvalue), rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_many_pairs_agree_with_scipys_normal_approximation(ties: bool) -> None:
    rng = np.random.default_rng(1)
    d = rng.integers(-20, 24, 400).astype(np.float64) if ties else rng.normal(0.1, 1.0, 400)
    ours = signed_rank_test(d)
    theirs = scipy_stats.wilcoxon(d[d != 0], method="asymptotic", correction=False)
    assert not ours.exact
    assert ours.p == pytest.approx(float(theirs.pvalue), rel=1e-9)


def test_approximations_take_over_smoothly() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(0.15, 1.0, 201)
    exact, approximate = signed_rank_test(d[:200]), signed_rank_test(np.append(d[:200], 1e-9))
    assert (exact.exact, approximate.exact) == (True, False)
    assert approximate.p == pytest.approx(exact.p, rel=0.05)
    (low, high), (low_above, high_above) = interval(d[:200]) or (0, 0), interval(d) or (0, 0)
    assert low_above == pytest.approx(low, abs=0.02)
    assert high_above == pytest.approx(high, abs=0.02)


def test_zero_differences_give_p_1() -> None:
    test = signed_rank_test(np.zeros(8))
    assert (test.p, test.n, test.positive, test.negative) == (1.0, 0, 0.0, 0.0)


@pytest.mark.parametrize(("n", "p"), [(0, 1.0), (1, 1.0), (5, 0.0625), (6, 0.03125), (10, 2 / 1024)])
def test_smallest_p_is_reached_when_all_agree(n: int, p: float) -> None:
    assert smallest_p(n) == p
    assert signed_rank_test(np.arange(1.0, n + 1)).p == p
    assert signed_rank_test(-np.ones(n)).p == p


@given(any_differences)
def test_no_p_is_below_the_smallest(d: Array) -> None:
    test = signed_rank_test(d)
    assert smallest_p(test.n) <= test.p * (1 + 1e-12)
    assert test.p <= 1
    assert test.positive + test.negative == test.n * (test.n + 1) / 2


@given(any_differences, st.integers(0, 2**32 - 1))
def test_the_order_of_pairs_does_not_matter(d: Array, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(d)
    assert signed_rank_test(shuffled) == signed_rank_test(d)
    assert interval(shuffled, 0.9) == interval(d, 0.9)
    assert hodges_lehmann(shuffled) == hodges_lehmann(d)


@given(any_differences)
def test_flipping_signs_mirrors_all_results(d: Array) -> None:
    test, turned = signed_rank_test(d), signed_rank_test(-d)
    assert turned.p == test.p
    assert (turned.positive, turned.negative) == (test.negative, test.positive)
    assert hodges_lehmann(-d) == -hodges_lehmann(d)
    bounds = interval(d, 0.9)
    assert interval(-d, 0.9) == (None if bounds is None else (-bounds[1], -bounds[0]))


@given(tied, st.integers(-20, 20), st.sampled_from([0.001, 0.25, 1.0, 30.0]))
def test_estimates_follow_shifts_and_scalings(d: Array, shift: int, scale: float) -> None:
    moved = scale * (d + shift)
    assert hodges_lehmann(moved) == pytest.approx(scale * (hodges_lehmann(d) + shift), abs=1e-9)
    bounds = interval(d, 0.9)
    expected = None if bounds is None else pytest.approx([scale * (b + shift) for b in bounds], abs=1e-9)
    assert interval(moved, 0.9) == expected
    assert signed_rank_test(scale * d) == signed_rank_test(d)


@pytest.mark.parametrize(("n", "level"), [(6, 0.95), (8, 0.95), (8, 0.9), (10, 0.95), (11, 1 - 0.05 / 3)])
def test_the_interval_contains_the_shifts_that_the_test_does_not_reject(n: int, level: float) -> None:
    d = untied(np.random.default_rng(n), n)
    bounds = interval(d, level)
    assert bounds is not None
    edges = walsh_averages(d)
    shifts = np.concatenate(([edges[0] - 1], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1]))
    kept = [bool(signed_rank_test(d - shift).p > 1 - level) for shift in shifts]
    assert kept == [bool(bounds[0] < shift < bounds[1]) for shift in shifts]
    assert any(kept)
    assert not all(kept)


@pytest.mark.parametrize(("n", "level"), [(5, 1 - 2 / 2**5), (6, 0.95), (9, 0.9), (10, 0.95), (20, 0.99), (60, 0.95)])
def test_the_interval_has_its_level_and_is_as_narrow_as_possible(n: int, level: float) -> None:
    # For d = 2⁰, 2¹, ... all Walsh averages are distinct, so ranks can be read off the endpoints.
    d = np.exp2(np.arange(n)) if n <= 20 else untied(np.random.default_rng(0), n)
    bounds = interval(d, level)
    assert bounds is not None
    k = int(np.searchsorted(walsh_averages(d), bounds[0]))
    below = [p_lower_tail(n, k), p_lower_tail(n, k + 1)]
    assert below[0] <= (1 - level) / 2 < below[1]


def p_lower_tail(n: int, k: int) -> float:
    """Return P(W ≤ k) by counting sets of distinct ranks by their sum, in integers."""
    ways = [1] + [0] * k
    for rank in range(1, n + 1):
        for total in range(k, rank - 1, -1):
            ways[total] += ways[total - rank]
    return math.ldexp(sum(ways), -n)


@pytest.mark.parametrize(("n", "level", "found"), [(5, 0.95, False), (6, 0.95, True), (4, 0.9, False), (5, 0.9, True)])
def test_interval_needs_enough_pairs(n: int, level: float, found: bool) -> None:
    d = np.arange(1.0, n + 1)
    assert (interval(d, level) is not None) == found
    assert (detectable(d, level) is not None) == found


@given(any_differences)
def test_estimates_are_numbers_inside_nested_intervals(d: Array) -> None:
    averages = walsh_averages(d)
    assert len(averages) == len(d) * (len(d) + 1) // 2
    assert not np.isnan(averages).any()
    assert (averages[1:] >= averages[:-1]).all()
    centre, wide, narrow = hodges_lehmann(d), interval(d, 0.95), interval(d, 0.9)
    if wide is not None:
        assert narrow is not None
        assert wide[0] <= narrow[0] <= centre <= narrow[1] <= wide[1]
        effect = detectable(d, 0.95)
        assert (effect is None) == bool(np.isinf(wide).any())
        if effect is not None:
            assert effect == pytest.approx(max(centre - wide[0], wide[1] - centre), abs=1e-9)


@settings(deadline=None)
@given(tied)
def test_walsh_averages_are_the_means_of_all_pairs(d: Array) -> None:
    means = [(x + y) / 2 for x, y in itertools.combinations_with_replacement(d.tolist(), 2)]
    np.testing.assert_allclose(walsh_averages(d), sorted(means), rtol=0, atol=1e-12)
    assert hodges_lehmann(d) == pytest.approx(float(np.median(means)), abs=1e-12)


def test_effects_above_the_detectable_size_are_significant_and_smaller_ones_are_not() -> None:
    rng = np.random.default_rng(7)
    d = rng.normal(0.0, 1.0, 12)
    noise = d - hodges_lehmann(d)
    smallest = detectable(noise, 0.95)
    assert smallest is not None
    for sign in (-1, 1):
        assert signed_rank_test(noise + sign * 1.001 * smallest).p <= 0.05
    # On the side where the interval is longer, a slightly smaller effect is not significant.
    assert max(signed_rank_test(noise + sign * 0.999 * smallest).p for sign in (-1, 1)) > 0.05


def test_infinite_differences_share_the_highest_rank() -> None:
    d = np.array([1.0, -2.0, math.inf, 3.0, -math.inf, math.inf])
    test = signed_rank_test(d)
    assert (test.positive, test.negative) == (1 + 3 + 5 + 5, 2 + 5)
    assert test.p == signed_rank_test(np.where(np.isinf(d), np.sign(d) * 99.0, d)).p


def test_estimates_handle_infinite_differences() -> None:
    inf = math.inf
    assert walsh_averages(np.array([-inf, 1.0, inf])).tolist() == [-inf, -inf, 0.0, 1.0, inf, inf]
    assert hodges_lehmann(np.array([-inf, inf])) == 0.0
    assert hodges_lehmann(np.array([-inf, -inf, 1.0])) == -inf
    assert interval(np.array([-inf, -inf, 1.0, 2.0, 3.0, 4.0, 5.0])) == (-inf, 4.0)
    assert detectable(np.array([-inf, -inf, 1.0, 2.0, 3.0, 4.0, 5.0])) is None


def test_floating_point_noise_does_not_break_ties() -> None:
    noisy = np.array([0.05 - 0.02, 0.03, -(0.1 + 0.2 - 0.27), 0.7 - 0.67, 0.3 - 0.3, 0.1 + 0.2 - 0.3])
    clean = np.array([0.03, 0.03, -0.03, 0.03, 0.0, 0.0])
    assert len(set(np.abs(noisy[:4]).tolist())) > 1, "the example has no noise"
    assert noisy[5] != 0
    # The noise of the last value is relative to the subtracted .3, that of the first to the largest difference.
    np.testing.assert_array_equal(round_differences(noisy), clean)
    assert signed_rank_test(noisy) == signed_rank_test(clean)
    assert walsh_averages(noisy).tolist() == walsh_averages(clean).tolist()


def test_rounding_is_relative_to_the_subtracted_values() -> None:
    d = np.array([1e-16, 1e-5])
    assert round_differences(d)[0] == 1e-16
    assert round_differences(d, magnitude=1.0).tolist() == [0.0, 1e-5]
    for scale in (1e-250, 1e-3, 1.0, 1e250):
        assert round_differences(scale * np.array([1.0, 1.0 + 1e-14, 1.0 + 1e-9])).tolist() == pytest.approx(
            [scale, scale, scale * (1 + 1e-9)], rel=1e-13
        )


def test_rounding_keeps_infinities_and_removes_negative_zero() -> None:
    d = round_differences(np.array([-math.inf, math.inf, -0.0, -1e-30, 1.0]))
    assert d.tolist() == [-math.inf, math.inf, 0.0, 0.0, 1.0]
    assert not np.signbit(d[2:]).any()
    assert round_differences(np.array([math.inf, -0.0])).tolist() == [math.inf, 0.0]
    assert round_differences(np.array([])).tolist() == []


def test_a_missing_difference_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="a difference is NaN"):
        signed_rank_test(np.array([1.0, math.nan]))


def holm_by_definition(p_values: list[float]) -> list[float]:
    """Adjust p-values as defined by Holm (1979): the running maximum over hypotheses ordered by p."""
    ordered = sorted(p_values)
    m = len(ordered)
    steps = [max(min(1.0, (m - j) * ordered[j]) for j in range(i + 1)) for i in range(m)]
    return [steps[ordered.index(p)] for p in p_values]


def test_holm_agrees_with_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_agrees_with_its_definition(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(holm_by_definition(p_values))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_the_same_as_stepping_down(p_values: list[float], alpha: float) -> None:
    adjusted = holm(p_values)
    rejected: set[int] = set()
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - step) * p_values[i] > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= q <= min(1.0, len(p_values) * p) for p, q in zip(p_values, adjusted, strict=True))
