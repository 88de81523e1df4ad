"""Matching: variants of two optimizers, paired by nearest accuracy.

Only validation data determine the pairs. A claim at matched accuracy is judged for these pairs on test data; the
remaining difference in accuracy is reported next to the claim's verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optbench.stats.arms import Arm
from optbench.stats.power import MIN_PAIRS
from optbench.suite.matching import Matching


@dataclass(frozen=True)
class Match:
    """Two matched variants and the distance between them.

    left_mean, right_mean: means of the metric on validation data, over the n seeds on which both sides are `ok` and
    have a value; NaN if n = 0.
    choices: the number of variants from which the nearest was chosen.
    """

    left: Arm
    right: Arm
    metric: str
    left_mean: float
    right_mean: float
    n: int
    choices: int

    @property
    def difference(self) -> float:
        return self.left_mean - self.right_mean


def match(lefts: Sequence[Arm], rights: Sequence[Arm], rule: Matching) -> tuple[list[Match], list[Match]]:
    """Match two sides; return the matches within the rule's limit and all other matches, each in variant order.

    Each variant of the side with fewer variants (the left side if the numbers are equal) is matched with the nearest
    variant of the other side. Variants with too few common seeds for a test are chosen only if there are no others.
    """
    found = []
    few_left = len(lefts) <= len(rights)
    for own in lefts if few_left else rights:
        others = rights if few_left else lefts
        sides = [(own, other) if few_left else (other, own) for other in others if other is not own]
        pairs = [_measured(left, right, rule, len(others)) for left, right in sides]
        enough = [pair for pair in pairs if pair.n >= MIN_PAIRS] or [pair for pair in pairs if pair.n]
        if pairs:
            found.append(min(enough or pairs, key=lambda pair: abs(pair.difference) if pair.n else math.inf))
    near = [pair for pair in found if pair.n and abs(pair.difference) <= rule.within]
    return near, [pair for pair in found if pair not in near]


def _measured(left: Arm, right: Arm, rule: Matching, choices: int) -> Match:
    seeds = [seed for seed in left.trials if left.status(seed) == right.status(seed) == "ok"]
    both = [(left.validated(rule.on, seed), right.validated(rule.on, seed)) for seed in seeds]
    known = [values for values in both if all(map(math.isfinite, values))]
    means = [statistics.fmean(side) for side in zip(*known, strict=True)] if known else [math.nan, math.nan]
    return Match(left, right, rule.on, means[0], means[1], len(known), choices)
