"""Paired results and verdicts: worked examples, an example of every verdict, divergence, and symmetries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optbench.metrics.metric import Direction
from optbench.stats.paired import PairedResult, PairedValues, compare_paired
from optbench.stats.power import ALPHA, MIN_PAIRS
from optbench.stats.signed_rank import detectable, smallest_p
from optbench.stats.verdict import Judgement, Question, Verdict, judge

Array = NDArray[np.float64]
EXAMPLE = np.array([0.03, 0.05, 0.02, 0.04, 0.06, 0.01, 0.03, 0.05, -0.01, 0.02])
BASE = np.array([0.91, 0.92, 0.9, 0.93, 0.94, 0.905, 0.915, 0.925, 0.935, 0.91])
DIRECTIONS: list[Direction] = ["higher", "lower", "neutral"]
TALKING = {Verdict.BETTER, Verdict.WORSE, Verdict.HIGHER, Verdict.LOWER, Verdict.BELOW_MARGIN}
MIRRORED = {
    Verdict.BETTER: Verdict.WORSE,
    Verdict.WORSE: Verdict.BETTER,
    Verdict.HIGHER: Verdict.LOWER,
    Verdict.LOWER: Verdict.HIGHER,
}


def pairs(
    a: Sequence[float] | Array, b: Sequence[float] | Array, fell_a: Sequence[int] = (), fell_b: Sequence[int] = ()
) -> PairedValues:
    """Return pairs in which the seeds `fell_a` of A and `fell_b` of B diverged, with NaN values as in the store."""
    a, b = np.array(a, dtype=np.float64), np.array(b, dtype=np.float64)
    diverged_a, diverged_b = np.isin(np.arange(len(a)), fell_a), np.isin(np.arange(len(b)), fell_b)
    return PairedValues(np.where(diverged_a, np.nan, a), np.where(diverged_b, np.nan, b), diverged_a, diverged_b)


def shifted(d: Sequence[float] | Array, direction: Direction = "higher", **fell: Sequence[int]) -> PairedResult:
    """Return the result for pairs that differ by d."""
    d = np.array(d, dtype=np.float64)
    base = np.resize(BASE, len(d))
    return compare_paired(pairs(base + d, base, **fell), direction)


def only(result: PairedResult, direction: Direction = "higher", margin: float = 0.005) -> Judgement:
    """Return the judgement of a family of one."""
    (judgement,) = judge([Question(result, direction, margin)])
    return judgement


@st.composite
def some_pairs(draw: st.DrawFn) -> PairedValues:
    """Draw coarse accuracies with a common difference, ties, undefined values and diverged seeds."""
    n = draw(st.integers(0, 12))
    ahead = draw(st.integers(-4, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    a, b = (rng.integers(0, 6, n) + ahead) / 100, rng.integers(0, 6, n) / 100
    share = draw(st.sampled_from([0.0, 0.0, 0.1, 0.5]))
    a[rng.random(n) < share / 2] = np.nan
    fell_a, fell_b = rng.random(n) < share, rng.random(n) < share
    return PairedValues(np.where(fell_a, np.nan, a), np.where(fell_b, np.nan, b), fell_a, fell_b)


def swap(p: PairedValues) -> PairedValues:
    return PairedValues(p.b, p.a, p.diverged_b, p.diverged_a)


def test_results_agree_with_a_worked_example() -> None:
    result = shifted(EXAMPLE)
    assert (result.pairs, result.n, result.undefined, result.diverged_a, result.diverged_b) == (10, 10, 0, 0, 0)
    assert result.difference == 0.03
    assert result.interval == (0.015, 0.045)
    assert result.interval_90 == (0.02, 0.045)
    assert result.p == 6 / 1024
    assert result.d_z == pytest.approx(1.423, abs=5e-4)
    assert result.rank_biserial == pytest.approx((53.5 - 1.5) / 55)
    assert result.wins == 0.9
    assert result.differences == tuple(EXAMPLE.tolist())
    assert result.median_a == pytest.approx(float(np.median(BASE + EXAMPLE)))
    assert result.median_b == pytest.approx(float(np.median(BASE)))


def test_wins_depend_on_the_direction_and_exclude_ties() -> None:
    d = [0.1, 0.2, 0.0, -0.1]
    assert [shifted(d, direction).wins for direction in DIRECTIONS] == [0.5, 0.25, 0.5]


def test_equal_differences_have_no_standardised_mean() -> None:
    assert shifted([0.1] * 7).d_z is None
    assert shifted([0.1]).d_z is None
    assert shifted([0.0] * 7).rank_biserial is None
    assert shifted([0.1] * 7).rank_biserial == 1


def test_values_that_differ_by_floating_point_noise_are_ties() -> None:
    # The last bit of a mean over tasks depends on their order.
    a = [(0.1 + 0.2 + 0.3) / 3] * 7 + [0.20001]
    b = [(0.3 + 0.2 + 0.1) / 3] * 7 + [0.2]
    assert a[0] != b[0]
    assert compare_paired(pairs(a, b), "higher").differences == (0.0,) * 7 + (1e-5,)


# One example of each verdict


@pytest.mark.parametrize(
    ("d", "direction", "margin", "verdict"),
    [
        (EXAMPLE, "higher", 0.005, Verdict.BETTER),
        (EXAMPLE, "lower", 0.005, Verdict.WORSE),
        (-EXAMPLE, "higher", 0.005, Verdict.WORSE),
        (-EXAMPLE, "lower", 0.005, Verdict.BETTER),
        (EXAMPLE, "neutral", 0.005, Verdict.HIGHER),
        (-EXAMPLE, "neutral", 0.005, Verdict.LOWER),
        (EXAMPLE, "higher", 0.03, Verdict.BETTER),  # a difference equal to the margin is enough
        (EXAMPLE, "higher", 0.031, Verdict.BELOW_MARGIN),
        (EXAMPLE, "neutral", 0.031, Verdict.BELOW_MARGIN),
        (EXAMPLE, "higher", 0.1, Verdict.BELOW_MARGIN),  # though the 90% interval is within the margin
        (EXAMPLE - 0.025, "higher", 0.025, Verdict.EQUIVALENT),
        (EXAMPLE - 0.025, "neutral", 0.025, Verdict.EQUIVALENT),
        (EXAMPLE - 0.025, "higher", 0.02, Verdict.NO_EVIDENCE),  # an end of the 90% interval equals the margin
        (EXAMPLE - 0.025, "higher", 0.0, Verdict.NO_EVIDENCE),
        (np.zeros(10), "higher", 0.005, Verdict.EQUIVALENT),
        (np.zeros(10), "higher", 0.0, Verdict.NO_EVIDENCE),
        (EXAMPLE[:5], "higher", 0.005, Verdict.NOT_COMPARABLE),
    ],
)
def test_every_verdict_has_an_example(d: Array, direction: Direction, margin: float, verdict: Verdict) -> None:
    judgement = only(shifted(d, direction), direction, margin)
    assert judgement.verdict == verdict
    assert (judgement.reason == "") == (verdict in MIRRORED)


def test_verdicts_come_with_reasons() -> None:
    assert only(shifted(EXAMPLE[:5])).reason == "5 pairs; the smallest two-sided p for 5 pairs is 0.0625"
    assert only(shifted(EXAMPLE[:1])).reason == "1 pair; the smallest two-sided p for 1 pair is 1"
    assert only(shifted(EXAMPLE), margin=0.05).reason == "0.03 is less than the margin 0.05"
    assert only(shifted(EXAMPLE - 0.025), margin=0.025).reason == "the 90% interval lies within ±0.025"
    assert only(shifted([])).reason == "no pairs"
    undefined = compare_paired(pairs([math.nan] * 7, [0.5] * 7), "higher")
    assert only(undefined).reason == "none of 7 pairs has a value on both sides"
    missing = compare_paired(pairs([math.nan] * 2 + [0.5] * 5, [0.4] * 7), "higher")
    assert only(missing).reason == "5 of 7 pairs can be used; the smallest two-sided p for 5 pairs is 0.0625"


def test_no_evidence_states_the_detectable_effect() -> None:
    d = EXAMPLE - 0.025
    for m in (1, 2, 3):
        first = judge([Question(shifted(d), "higher", 0.005)] * m)[0]
        assert first.verdict == Verdict.NO_EVIDENCE
        assert first.detectable is not None
        assert first.detectable == detectable(np.array(shifted(d).differences), 1 - ALPHA / m)
        assert first.reason == f"an effect above {first.detectable:.3g} would have shown"


def test_no_evidence_states_when_no_effect_is_detectable() -> None:
    result = shifted(EXAMPLE[:7])
    assert result.p == 2 / 2**7
    # All seven seeds agree, but seven are too few for four metrics.
    judgements = judge([Question(result, "higher", 0.005)] * 4)
    assert {j.verdict for j in judgements} == {Verdict.NO_EVIDENCE}
    assert judgements[0].detectable is None
    assert judgements[0].reason == ("7 pairs cannot show a difference in a family of 4: the smallest Holm p is 0.0625")
    assert judge([Question(result, "higher", 0.005)] * 3)[0].verdict == Verdict.BETTER


def test_ties_are_named_as_the_reason() -> None:
    mostly_equal = only(shifted([0.0] * 11 + [0.1]), margin=0.0)
    assert (mostly_equal.verdict, mostly_equal.detectable) == (Verdict.NO_EVIDENCE, None)
    assert mostly_equal.reason == "too many ties: equal values in 11 of 12 pairs"
    for margin, verdict in ((0.0, Verdict.NO_EVIDENCE), (0.005, Verdict.EQUIVALENT)):
        equal = only(shifted([0.0] * 12), margin=margin)
        assert (equal.verdict, equal.reason) == (verdict, "identical: equal values in 12 of 12 pairs")
    # All six untied pairs agree, but the interval also counts the four ties.
    half_equal = only(shifted([0.0] * 4 + [0.1] * 6))
    assert half_equal.holm_p == 2 / 2**6
    assert half_equal.verdict == Verdict.NO_EVIDENCE
    assert half_equal.reason == "the 95% interval includes 0: equal values in 4 of 10 pairs"
    same_size = only(shifted([0.1] * 10 + [-0.1]))
    assert same_size.holm_p == pytest.approx(24 / 2**11)
    assert same_size.verdict == Verdict.NO_EVIDENCE
    assert same_size.reason == "the 95% interval includes 0: differences of the same size"


def test_incomparable_pairs_get_no_verdict() -> None:
    question = Question(shifted(EXAMPLE), "higher", 0.005, comparable=False, reason="initial weights differ")
    assert judge([question]) == [Judgement(None, Verdict.NOT_COMPARABLE, "initial weights differ", None)]


# The family


def test_p_values_are_corrected_over_the_family() -> None:
    results = [shifted(EXAMPLE), shifted(EXAMPLE - 0.01), shifted(EXAMPLE - 0.025)]
    first, second, third = (result.p or 0.0 for result in results)
    judgements = judge([Question(result, "higher", 0.005) for result in results])
    assert [j.holm_p for j in judgements] == pytest.approx([3 * first, 2 * second, third])
    # The second is significant alone but not among three.
    assert only(results[1]).verdict == Verdict.BETTER
    assert [j.verdict for j in judgements] == [Verdict.BETTER, Verdict.NO_EVIDENCE, Verdict.NO_EVIDENCE]


def test_a_question_without_a_test_counts_in_the_family() -> None:
    asked = Question(shifted(EXAMPLE), "higher", 0.005)
    undefined = Question(compare_paired(pairs([math.nan] * 10, BASE), "higher"), "higher", 0.005)
    other_start = dataclasses.replace(asked, comparable=False, reason="initial weights differ")
    one_sided = Question(shifted(EXAMPLE, "neutral", fell_a=[0]), "neutral", 0.005)
    for silent in (undefined, other_start, one_sided):
        judgement, none = judge([asked, silent])
        assert judgement.holm_p == 2 * 6 / 1024
        assert (none.holm_p, none.verdict) == (None, Verdict.NOT_COMPARABLE)


@given(st.lists(some_pairs(), max_size=5), st.sampled_from(DIRECTIONS))
def test_a_larger_family_never_adds_verdicts(family: list[PairedValues], direction: Direction) -> None:
    questions = [Question(compare_paired(p, direction), direction, 0.005) for p in family]
    together = judge(questions)
    for question, judgement in zip(questions, together, strict=True):
        (alone,) = judge([question])
        assert (alone.holm_p is None) == (judgement.holm_p is None)
        assert (judgement.holm_p or 0) >= (alone.holm_p or 0)
        if judgement.verdict in TALKING:
            assert alone.verdict == judgement.verdict


# Divergence


@pytest.mark.parametrize(("direction", "worst"), [("higher", -math.inf), ("lower", math.inf)])
def test_a_diverged_seed_takes_the_worst_rank(direction: Direction, worst: float) -> None:
    result = compare_paired(pairs([0.5] * 4, [0.4] * 4, fell_a=[1, 3], fell_b=[2, 3]), direction)
    assert result.differences == (0.1, worst, -worst, 0.0)
    assert (result.n, result.diverged_a, result.diverged_b, result.diverged_both) == (4, 2, 2, 1)
    assert result.undefined == 0
    assert result.wins == (0.5 if direction == "higher" else 0.25)
    assert result.d_z is None
    assert (result.median_a, result.median_b) == (0.5, 0.4)


def test_the_value_of_a_diverged_seed_is_ignored() -> None:
    flags = np.array([True] + [False] * 6)
    none = np.zeros(7, dtype=bool)
    a = np.linspace(0.5, 0.6, 7)
    garbage = a.copy()
    garbage[0] = 1e30
    clean, dirty = (compare_paired(PairedValues(x, a - 0.1, flags, none), "higher") for x in (a, garbage))
    assert clean == dirty


def test_a_neutral_metric_has_no_worst_rank() -> None:
    result = shifted(EXAMPLE, "neutral", fell_a=[0, 1], fell_b=[1, 2])
    assert (result.pairs, result.n, result.undefined) == (10, 7, 0)
    assert (result.diverged_a, result.diverged_b, result.diverged_both) == (2, 2, 1)
    assert result.differences == tuple(EXAMPLE[3:].tolist())
    judgement = only(result, "neutral")
    assert judgement.verdict == Verdict.NOT_COMPARABLE
    assert judgement.reason == "only one side diverged on 2 of 10 pairs"


def test_a_neutral_metric_where_both_diverged_on_the_same_seed_has_a_verdict() -> None:
    result = shifted(EXAMPLE, "neutral", fell_a=[8], fell_b=[8])
    assert (result.n, result.differences) == (9, tuple(np.delete(EXAMPLE, 8).tolist()))
    assert only(result, "neutral").verdict == Verdict.HIGHER


def test_undefined_pairs_are_counted() -> None:
    a = [math.nan, 0.5, 0.5, math.nan, 0.5, math.inf, 0.5]
    b = [0.4, math.nan, 0.4, 0.4, 0.4, 0.4, 0.4]
    for direction in DIRECTIONS:
        # B diverged where A has no value, so the pair cannot be ranked.
        result = compare_paired(pairs(a, b, fell_b=[3]), direction)
        assert (result.pairs, result.n, result.undefined) == (7, 3, 4)
        assert result.differences == (0.1, 0.1, 0.1)


def test_more_diverged_seeds_never_help() -> None:
    order = [Verdict.BETTER, Verdict.NO_EVIDENCE, Verdict.WORSE, Verdict.NOT_COMPARABLE]
    for direction in ("higher", "lower"):
        d = EXAMPLE if direction == "higher" else -EXAMPLE
        results = [shifted(d, direction, fell_a=range(k)) for k in range(11)]
        verdicts = [only(result, direction).verdict for result in results]
        places = [order.index(verdict) for verdict in verdicts]
        assert places == sorted(places)
        assert verdicts[0] == Verdict.BETTER
        assert verdicts[-1] == Verdict.NOT_COMPARABLE
        wins = [result.wins for result in results]
        assert wins == sorted((w for w in wins if w is not None), reverse=True)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(6, 12), st.integers(-3, 6), st.integers(1, 4))
def test_divergence_never_improves_a_verdict(seed: int, n: int, ahead: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 8, n) + ahead) / 100, rng.integers(0, 8, n) / 100
    fell_b = np.flatnonzero(rng.random(n) < 0.1).tolist()
    was_ahead = True
    for k in range(n + 1):
        result = compare_paired(pairs(a, b, list(range(k)), fell_b), "higher")
        judgement = judge([Question(result, "higher", 0.005)] * m)[0]
        # An infinite lead is not comparable but still counts as a lead.
        ahead_now = judgement.verdict == Verdict.BETTER or result.difference == math.inf
        assert was_ahead or not ahead_now, f"{k} diverged seeds made A better"
        was_ahead = ahead_now


def test_too_many_diverged_seeds_leave_no_effect_size() -> None:
    judgement = only(shifted(EXAMPLE, fell_a=range(8), fell_b=[9]))
    assert judgement.verdict == Verdict.NOT_COMPARABLE
    assert judgement.reason == "the size of the difference is unknown: A diverged on 8 of 10 seeds, B on 1"
    assert judgement.holm_p == shifted(EXAMPLE, fell_a=range(8), fell_b=[9]).p


def test_a_few_diverged_seeds_leave_the_interval_unbounded() -> None:
    result = shifted(EXAMPLE - 0.01, fell_a=[0, 1])
    assert result.interval is not None
    assert result.interval[0] == -math.inf
    judgement = only(result)
    assert (judgement.verdict, judgement.detectable) == (Verdict.NO_EVIDENCE, None)
    assert judgement.reason == "the interval is unbounded: A diverged on 2 of 10 seeds"


def test_diverging_on_the_same_seeds_is_not_equivalence() -> None:
    both = shifted(EXAMPLE, fell_a=range(10), fell_b=range(10))
    assert (both.n, both.difference, both.p) == (10, 0.0, 1.0)
    judgement = only(both)
    assert judgement.verdict == Verdict.NOT_COMPARABLE
    assert judgement.reason == "no values: A diverged on 10 of 10 seeds, B on 10"
    almost = shifted(EXAMPLE, fell_a=range(9), fell_b=range(9))
    assert almost.interval_90 == (0.0, 0.0)
    assert only(almost, margin=1.0).verdict == Verdict.NO_EVIDENCE


# Properties of any pairs


@settings(max_examples=200, deadline=None)
@given(some_pairs(), st.sampled_from(DIRECTIONS))
def test_every_pair_is_counted_once(p: PairedValues, direction: Direction) -> None:
    result = compare_paired(p, direction)
    fell = p.diverged_a | p.diverged_b
    unused_by_divergence = int((fell & (np.isfinite(p.a) | p.diverged_a)).sum()) if direction == "neutral" else 0
    assert result.pairs == result.n + result.undefined + unused_by_divergence
    assert len(result.differences) == result.n
    values = [result.difference, result.p, result.wins, *(result.interval or ())]
    assert not any(value is not None and math.isnan(value) for value in values)
    assert (result.difference is None) == (result.p is None) == (result.wins is None) == (result.n == 0)


@settings(max_examples=200, deadline=None)
@given(some_pairs(), st.sampled_from(DIRECTIONS), st.integers(1, 4), st.sampled_from([0.0, 0.005, 0.03]))
def test_swapping_the_optimizers_mirrors_the_verdict(
    p: PairedValues, direction: Direction, m: int, margin: float
) -> None:
    one, other = compare_paired(p, direction), compare_paired(swap(p), direction)
    assert other.p == one.p
    assert other.interval == (None if one.interval is None else (-one.interval[1], -one.interval[0]))
    assert other.difference == (None if one.difference is None else -one.difference)
    assert other.d_z == (None if one.d_z is None else pytest.approx(-one.d_z))
    assert (other.median_a, other.median_b) == (one.median_b, one.median_a)
    assert (other.diverged_a, other.undefined) == (one.diverged_b, one.undefined)
    there, back = (judge([Question(r, direction, margin)] * m)[0] for r in (one, other))
    assert back.verdict == MIRRORED.get(there.verdict, there.verdict)
    assert back.detectable == there.detectable


@settings(max_examples=100, deadline=None)
@given(some_pairs(), st.sampled_from(DIRECTIONS), st.integers(0, 2**32 - 1))
def test_the_order_of_seeds_does_not_matter(p: PairedValues, direction: Direction, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(p.a))
    permuted = PairedValues(p.a[order], p.b[order], p.diverged_a[order], p.diverged_b[order])
    one, other = compare_paired(p, direction), compare_paired(permuted, direction)
    assert sorted(other.differences) == sorted(one.differences)
    assert other.d_z == (None if one.d_z is None else pytest.approx(one.d_z, rel=1e-9, abs=1e-12))
    assert dataclasses.replace(other, differences=one.differences, d_z=one.d_z) == one
    assert only(other, direction) == only(one, direction)


@settings(max_examples=200, deadline=None)
@given(some_pairs(), st.sampled_from(DIRECTIONS), st.integers(1, 4), st.sampled_from([0.0, 0.005, 0.03]))
def test_verdicts_agree_with_their_definitions(p: PairedValues, direction: Direction, m: int, margin: float) -> None:
    result = compare_paired(p, direction)
    judgement = judge([Question(result, direction, margin)] * m)[0]
    said = judgement.verdict
    if said in TALKING:
        assert result.difference is not None
        assert result.interval is not None
        assert judgement.holm_p is not None
        assert judgement.holm_p <= ALPHA
        assert result.interval[0] > 0 or result.interval[1] < 0
        assert (abs(result.difference) < margin) == (said == Verdict.BELOW_MARGIN)
        if said in MIRRORED:
            assert (said in {Verdict.HIGHER, Verdict.LOWER}) == (direction == "neutral")
            assert (said in {Verdict.HIGHER, Verdict.BETTER}) == (
                result.difference > 0 if direction != "lower" else result.difference < 0
            )
    if said == Verdict.EQUIVALENT:
        assert result.interval_90 is not None
        assert -margin < result.interval_90[0] <= result.interval_90[1] < margin
    if said == Verdict.NO_EVIDENCE and judgement.detectable is not None:
        assert judgement.detectable > 0
        assert result.difference is not None
        assert abs(result.difference) <= judgement.detectable
    if result.n < MIN_PAIRS:
        assert said == Verdict.NOT_COMPARABLE
    assert (judgement.detectable is None) or said == Verdict.NO_EVIDENCE


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_five_pairs_never_give_a_verdict(sizes: list[int]) -> None:
    result = shifted(np.array(sizes) / 10)
    assert result.p is not None
    assert result.p >= smallest_p(5) > ALPHA
    assert only(result).verdict == Verdict.NOT_COMPARABLE


def test_pairs_of_different_lengths_are_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="different lengths"):
        PairedValues(np.zeros(3), np.zeros(4), np.zeros(3, dtype=bool), np.zeros(4, dtype=bool))
