"""Verdicts on the metrics of a declared family, based on test results.

A verdict that A and B differ requires significance (Holm p ≤ .05 over the family, and a 95% interval that excludes 0)
and an effect of at least the metric's margin. `no evidence` never means "no difference": it reports what the pairs
could have shown. Only `equivalent` states that there is no relevant difference, and it requires an interval inside the
margin, not a large p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from optbench.counting import count
from optbench.metrics.metric import Direction
from optbench.stats.holm import holm
from optbench.stats.paired import PairedResult
from optbench.stats.power import ALPHA, MIN_PAIRS, seeds_needed, smallest_holm_p
from optbench.stats.signed_rank import detectable, smallest_p


class Verdict(StrEnum):
    """The verdict on A against B."""

    BETTER = "better"
    WORSE = "worse"
    HIGHER = "higher"
    LOWER = "lower"
    BELOW_MARGIN = "below margin"
    EQUIVALENT = "equivalent"
    NO_EVIDENCE = "no evidence"
    NOT_COMPARABLE = "not comparable"


DIFFERENT = frozenset({Verdict.BETTER, Verdict.WORSE, Verdict.HIGHER, Verdict.LOWER})
"""The verdicts that state a relevant difference."""


@dataclass(frozen=True)
class Question:
    """One metric of the family: does A differ from B?

    margin: the smallest relevant difference, in the metric's unit, ≥ 0. If it is 0, the verdict is never `equivalent`.
    comparable: False if trials with the same seed do not form pairs, e.g. if their initial weights differ.
    reason: why the trials do not form pairs; used only if `comparable` is False.
    undefined: why values are undefined; empty if all are defined or the reason is unknown.
    """

    result: PairedResult
    direction: Direction
    margin: float
    comparable: bool = True
    reason: str = ""
    undefined: str = ""


@dataclass(frozen=True)
class Judgement:
    """The answer to a question.

    holm_p: p corrected over the family; None if there is no valid p.
    reason: why there is no stronger verdict; empty if the verdict needs no explanation.
    detectable: for the verdict `no evidence`, the smallest effect that these pairs could have shown to be significant
    at Holm's first step, in the metric's unit; None if they could not have shown any.
    seeds_needed: the smallest number of pairs that can show a difference in this family; None if more pairs are not
    needed or would not help.
    """

    holm_p: float | None
    verdict: Verdict
    reason: str
    detectable: float | None
    seeds_needed: int | None = None


def judge(family: Sequence[Question]) -> list[Judgement]:
    """Judge each question, in order. Together, the questions form the family for Holm's correction.

    A question without a valid p enters the family with p = 1, so that an undefined metric does not weaken the
    correction. A significant difference smaller than the margin is `below margin` even if its 90% interval lies within
    the margin; `equivalent` is for differences that are not significant.
    """
    valid = [None if _why_no_test(question) else question.result.p for question in family]
    corrected = holm([1.0 if p is None else p for p in valid])
    return [
        _judge_one(question, None if p is None else holm_p, len(family))
        for question, p, holm_p in zip(family, valid, corrected, strict=True)
    ]


def _judge_one(question: Question, holm_p: float | None, m: int) -> Judgement:
    assert question.margin >= 0
    result = question.result
    if (obstacle := _why_no_test(question)) is not None:
        return Judgement(holm_p, Verdict.NOT_COMPARABLE, obstacle, None)
    enough = seeds_needed(m)
    if (obstacle := _why_no_verdict(result)) is not None:
        # The only one of these obstacles that more seeds can overcome is a lack of pairs.
        return Judgement(holm_p, Verdict.NOT_COMPARABLE, obstacle, None, enough if result.n < MIN_PAIRS else None)
    assert holm_p is not None
    assert result.difference is not None
    assert result.interval is not None
    if holm_p <= ALPHA and not result.interval[0] <= 0 <= result.interval[1]:
        size = abs(result.difference)
        if size < question.margin:
            return Judgement(
                holm_p, Verdict.BELOW_MARGIN, f"{_short(size)} is less than the margin {_short(question.margin)}", None
            )
        return Judgement(holm_p, _winner(question.direction, result.difference), "", None)
    if within_margin(question):
        within = f"the 90% interval lies within ±{_short(question.margin)}"
        return Judgement(
            holm_p, Verdict.EQUIVALENT, f"identical: {_ties(result)}" if result.identical else within, None
        )
    effect, reason = _what_would_have_shown(result, holm_p, m)
    return Judgement(holm_p, Verdict.NO_EVIDENCE, reason, effect, enough if result.n < enough else None)


def _why_no_test(question: Question) -> str | None:
    """Return why the p-value of a question is missing or invalid; None if it is valid."""
    result = question.result
    if not question.comparable:
        return question.reason or "the pairs are not comparable"
    one_sided = result.diverged_a + result.diverged_b - 2 * result.diverged_both
    if question.direction == "neutral" and one_sided:
        return f"only one side diverged on {one_sided} of {count(result.pairs, 'pair')}"
    if result.p is None and result.pairs:
        why = f": {question.undefined}" if question.undefined else ""
        return f"none of {count(result.pairs, 'pair')} has a value on both sides{why}"
    if result.p is None:
        return "no pairs"
    return None


def _why_no_verdict(result: PairedResult) -> str | None:
    """Return why no verdict is possible although the p-value is valid; None if a verdict is possible."""
    if result.n < MIN_PAIRS:
        n = count(result.n, "pair")
        which = f"{result.n} of {count(result.pairs, 'pair')} can be used" if result.n < result.pairs else n
        return f"{which}; the smallest two-sided p for {n} is {_short(smallest_p(result.n))}"
    assert result.difference is not None
    if math.isinf(result.difference):
        return f"the size of the difference is unknown: {_diverged(result)}"
    # Two diverged trials tie in the worst rank without having equal values.
    if result.diverged_both and result.median_a is None and result.median_b is None:
        return f"no values: {_diverged(result)}"
    return None


def _winner(direction: Direction, difference: float) -> Verdict:
    if direction == "neutral":
        return Verdict.HIGHER if difference > 0 else Verdict.LOWER
    return Verdict.BETTER if (difference > 0) == (direction == "higher") else Verdict.WORSE


def within_margin(question: Question) -> bool:
    """Return whether the 90% interval lies inside ± margin: two one-sided tests at .05 (Schuirmann 1987)."""
    result, bounds = question.result, question.result.interval_90
    # Seeds on which both diverged are ties at 0 in a directed metric: they narrow the interval without showing a size.
    if bounds is None or (question.direction != "neutral" and result.diverged_both):
        return False
    return -question.margin < bounds[0] and bounds[1] < question.margin


def _what_would_have_shown(result: PairedResult, holm_p: float, m: int) -> tuple[float | None, str]:
    """Return the smallest effect (or None) that these pairs could have shown among m questions, and an explanation."""
    d = np.array(result.differences)
    least = smallest_holm_p(result.n, m)
    if least > ALPHA:
        return None, (
            f"{count(result.n, 'pair')} cannot show a difference in a family of {m}: "
            f"the smallest Holm p is {_short(least)}"
        )
    if holm_p <= ALPHA:
        return None, f"the 95% interval includes 0: {_ties(result)}"
    effect = detectable(d, 1 - ALPHA / m)
    if effect is None:
        return None, f"the interval is unbounded: {_diverged(result)}"
    if effect == 0:
        return None, f"{'identical' if result.identical else 'too many ties'}: {_ties(result)}"
    return effect, f"an effect above {_short(effect)} would have shown"


def _ties(result: PairedResult) -> str:
    equal = result.differences.count(0)
    return f"equal values in {equal} of {count(result.n, 'pair')}" if equal else "differences of the same size"


def _diverged(result: PairedResult) -> str:
    """Describe the divergence of both sides, e.g. `A diverged on 7 of 10 seeds, B on 1`."""
    counts = [(side, n) for side, n in (("A", result.diverged_a), ("B", result.diverged_b)) if n]
    said = [f"{side} diverged on {n}" if i == 0 else f"{side} on {n}" for i, (side, n) in enumerate(counts)]
    said[0] += f" of {count(result.pairs, 'seed')}"
    return ", ".join(said)


def _short(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:.3g}"
