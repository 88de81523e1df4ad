"""Claims at matched accuracy in a report: the matched variants, and the variants for which no match is close enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from optbench.counting import count
from optbench.report.numbers import fixed, signed, words
from optbench.stats.claims import JudgedClaim
from optbench.stats.matching import Match

DIGITS = 4


def matching_lines(claims: Sequence[JudgedClaim]) -> Iterable[str]:
    """Yield a line for each match of a claim, with the remaining difference, and one for each variant left out."""
    for number, claim in enumerate(claims, start=1):
        for part in claim.parts:
            if part.match is not None:
                chosen = f", the nearest of {part.match.choices}" if part.match.choices > 1 else ""
                yield f"claim {number}, {part.model}: matched: {_sides(part.match, claim.in_bits)}{chosen}"
        for pair in claim.unmatched:
            assert claim.claim.matched is not None
            limit = f"more than {claim.claim.matched.within:g}" if pair.n else "no seed is ok on both sides"
            yield f"claim {number}, {pair.left.model}: left out, no match: {_sides(pair, claim.in_bits)}: {limit}"


def matched_text(judged: JudgedClaim) -> str:
    """Describe a claim's matching, e.g. `at matched learning accuracy`; empty for a claim without matching."""
    matched = judged.claim.matched
    return f"at matched {words(matched.on, judged.in_bits)}" if matched else ""


def match_record(pair: Match) -> dict[str, Any]:
    """Return a match as a record for JSON."""
    return {
        "metric": pair.metric,
        "left_mean": pair.left_mean if pair.n else None,
        "right_mean": pair.right_mean if pair.n else None,
        "difference": pair.difference if pair.n else None,
        "n": pair.n,
        "choices": pair.choices,
    }


def _sides(pair: Match, in_bits: bool) -> str:
    """Describe both sides of a match and their difference on validation data.

    For example:
    `shampoo 0.9763, adamw lr=0.003 0.9748: +0.0015 in mean learning accuracy on validation data (7 seeds)`.
    """
    means = ((pair.left.label, pair.left_mean), (pair.right.label, pair.right_mean))
    sides = ", ".join(f"{label} {fixed(mean, DIGITS)}" for label, mean in means)
    left = f"{signed(pair.difference, DIGITS)} in mean {words(pair.metric, in_bits)} on validation data"
    return f"{sides}: {left} ({count(pair.n, 'seed')})"
