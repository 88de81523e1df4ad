"""Claims: expectations that a suite states and that the results of a run support or contradict.

A claim has one part for each of its models and each combination of a left and a right variant. Each part is judged by
the paired test of `verdict`, with Holm's correction over the parts; the claim is supported if all parts are.
Tasks that trials of either side failed to learn are reported next to the verdict and do not change it.

Some claims have further settings:

- A claim with readings gets its verdict from the primary reading; the other readings are reported next to the verdict.
- A claim with a condition (`where`) covers the variants that meet the condition; the other variants are listed.
- A claim at matched accuracy (`matched`) covers pairs of a left and a right variant that are nearest in accuracy.
- A claim about pairs of solutions (`left: [adam, sgd]`) uses a metric that compares two solutions. Seed by seed, the
  value for the left pair is compared with the value for another pair or for a null (a trial and its control), or with a
  number.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from optbench.counting import count, grouped
from optbench.errors import StoreError
from optbench.metrics import Metric
from optbench.stats.arms import Arm, arms
from optbench.stats.between import Between
from optbench.stats.comparison import ENDED, ask, pairs, same_start
from optbench.stats.conditions import LeftOut, select_variants
from optbench.stats.matching import Match, match
from optbench.stats.paired import PairedResult, compare_paired
from optbench.stats.power import MIN_PAIRS
from optbench.stats.readings import JudgedReading, judge_readings
from optbench.stats.results import Results
from optbench.stats.verdict import DIFFERENT, Judgement, Question, Verdict, judge, within_margin
from optbench.suite.claims import Claim
from optbench.suite.sides import Arms, covers, crossed


class ClaimVerdict(StrEnum):
    """The verdict on a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    NO_EVIDENCE = "no evidence"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class ClaimPart:
    """One part of a claim: the claim on one model, for one variant of each side.

    beside: the medians of the left and right sides for each metric in the claim's `beside`, by name.
    readings: the result of each reading; empty if the claim has none.
    match: the two variants and their distance, for a claim at matched accuracy; else None.
    """

    model: str
    left: Arm
    right: Arm | float
    result: PairedResult
    judgement: Judgement
    verdict: ClaimVerdict
    reason: str
    beside: Mapping[str, tuple[float | None, float | None]]
    readings: tuple[JudgedReading, ...] = ()
    match: Match | None = None

    @property
    def sides(self) -> tuple[Arm, ...]:
        """The sides of the part that are not numbers; a pair of solutions is one side."""
        return tuple(side for side in (self.left, self.right) if isinstance(side, Arm))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of all sides, including both arms of a side that is a pair of solutions; an arm can occur twice."""
        return tuple(arm for side in self.sides for arm in side.arms)

    @property
    def not_learnt(self) -> bool:
        """Whether trials of either side failed to learn a task. A network that learnt nothing has nothing to forget."""
        return any(arm.shortcoming is not None for arm in self.arms)


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its parts and their combined verdict.

    margin: the smallest relevant difference, as stated by the claim or, by default, by its metric.
    left_out: the variants of either side that do not meet the claim's condition and therefore belong to no part.
    unmatched: the matches that form no part, because the variants are too far apart or no seed has values of both.
    in_bits: whether the claim is about text, for which the accuracy matrix R holds negative bits per byte.
    """

    name: str
    claim: Claim
    margin: float
    verdict: ClaimVerdict
    parts: tuple[ClaimPart, ...]
    left_out: tuple[LeftOut, ...] = ()
    unmatched: tuple[Match, ...] = ()
    in_bits: bool = False

    @property
    def partly_judged(self) -> tuple[Arm, ...]:
        """The variants for which the claim's condition was checked on only some trials, because others are not `ok`."""
        if not self.claim.where:
            return ()
        every = {(arm.model, arm.optimizer, arm.variant): arm for part in self.parts for arm in part.arms}
        return tuple(arm for arm in every.values() if arm.count("ok") < len(arm.trials))


def judge_claims(results: Results) -> list[JudgedClaim]:
    """Judge every claim of the run's suite, in order.

    Raises:
        StoreError: the run's record does not describe a metric that a claim uses.
    """
    everyone, metrics = arms(results), results.metrics
    for name, claim in results.suite.claims.items():
        cells = (claim.primary, *(claim.readings.cells if claim.readings is not None else ()))
        if missing := next((cell.name for cell in cells if cell.name not in metrics), None):
            what = f"expected a description of '{missing}', which claims.{name} uses, got none"
            raise StoreError(f"{results.run.path / 'run.json'}: metrics: {what}")
    found = []
    for name, claim in results.suite.claims.items():
        judged = _judged(name, claim, results.metrics_of(claim.experiment), everyone)
        found.append(replace(judged, in_bits=claim.experiment in results.in_bits))
    return found


def _judged(name: str, claim: Claim, metrics: Mapping[str, Metric], everyone: Sequence[Arm]) -> JudgedClaim:
    primary = claim.primary
    metric = metrics[primary.name]
    cells = claim.readings.cells if claim.readings is not None else ()
    margin = metric.margin if claim.margin is None else claim.margin
    taking_part, outside = _taking_part(claim, everyone)
    sides, matches, unmatched = _matched(claim, _sides(claim, taking_part))
    questions: list[Question] = []
    readings: list[tuple[JudgedReading, ...]] = []
    for left, right in sides:
        seeds = [s for s in left.trials if left.status(s) in ENDED and _ended(right, s)]
        result = compare_paired(pairs(left, right, seeds, metric, primary.data), metric.direction)
        alike = same_start(left, right, seeds) if isinstance(right, Arm) else True
        comparable = alike is not False
        questions.append(ask(left, right, seeds, metric, result, margin, comparable=comparable))
        readings.append(judge_readings(cells, primary, (left, right), seeds, metrics, comparable=comparable))
    parts = []
    judged = zip(sides, questions, judge(questions), readings, matches, strict=True)
    for (left, right), question, judgement, read, near in judged:
        result = question.result
        if claim.expect == "equivalent":  # the power of this test does not depend on the number of parts
            judgement = replace(judgement, seeds_needed=None if question.result.n >= MIN_PAIRS else MIN_PAIRS)
        verdict, reason = _verdict(claim, question, judgement)
        beside = {name: (_median(left, name), _median(right, name)) for name in claim.beside}
        parts.append(ClaimPart(left.model, left, right, result, judgement, verdict, reason, beside, read, near))
    verdict = overall([part.verdict for part in parts])
    return JudgedClaim(name, claim, margin, verdict, tuple(parts), outside, unmatched)


def overall(verdicts: Sequence[ClaimVerdict]) -> ClaimVerdict:
    """Combine the verdicts of the parts of a claim.

    The result is `contradicted` if any part is contradicted, `supported` if all parts are supported, `not comparable`
    if no part is comparable or there are no parts, and otherwise `no evidence`.
    """
    if ClaimVerdict.CONTRADICTED in verdicts:
        return ClaimVerdict.CONTRADICTED
    if not verdicts or set(verdicts) == {ClaimVerdict.NOT_COMPARABLE}:
        return ClaimVerdict.NOT_COMPARABLE
    return ClaimVerdict.SUPPORTED if set(verdicts) == {ClaimVerdict.SUPPORTED} else ClaimVerdict.NO_EVIDENCE


def _taking_part(claim: Claim, everyone: Sequence[Arm]) -> tuple[list[Arm], tuple[LeftOut, ...]]:
    """Split the variants of both sides, on the claim's models, by whether they meet the claim's condition."""
    named = [
        arm
        for arm in everyone
        if arm.experiment == claim.experiment
        and any(covers(named, arm.optimizer, arm.variant) for named in claim.arms)
        and (claim.models is None or arm.model in claim.models)
    ]
    return select_variants(named, claim.where)


def _sides(claim: Claim, taking_part: Sequence[Arm]) -> list[tuple[Arm, Arm | float]]:
    """Return the two sides of each part: on every model, each left variant with each different right variant."""
    models = claim.models or list(dict.fromkeys(arm.model for arm in taking_part))
    found: list[tuple[Arm, Arm | float]] = []
    for model in models:
        named = {(arm.optimizer, arm.variant): arm for arm in taking_part if arm.model == model}
        for left, right in crossed(claim.left, claim.right, list(named)):
            found.append((_side(left, named), right if isinstance(right, float) else _side(right, named)))
    return found


def _side(side: Arms, named: Mapping[tuple[str, str], Arm]) -> Arm:
    if len(side) == 1:
        return named[side[0]]
    first, second = (named[name] for name in side)
    return Between.of(first, second if second is not first else None)


def _matched(
    claim: Claim, sides: Sequence[tuple[Arm, Arm | float]]
) -> tuple[list[tuple[Arm, Arm | float]], list[Match | None], tuple[Match, ...]]:
    """Return the sides of each part, the match of each part, and the matches that are too distant to become parts.

    For a claim without matched accuracy, return all `sides`, None as the match of each part, and no distant matches.
    """
    if claim.matched is None:
        return list(sides), [None] * len(sides), ()
    near: list[Match] = []
    far: list[Match] = []
    for of_model in grouped((left.model, (left, right)) for left, right in sides if isinstance(right, Arm)).values():
        lefts, rights = ({arm.key: arm for arm in side} for side in zip(*of_model, strict=True))
        found = match(list(lefts.values()), list(rights.values()), claim.matched)
        near, far = near + found[0], far + found[1]
    return [(pair.left, pair.right) for pair in near], list(near), tuple(far)


def _verdict(claim: Claim, question: Question, judgement: Judgement) -> tuple[ClaimVerdict, str]:
    result = question.result
    if claim.expect == "equivalent" and judgement.verdict is not Verdict.NOT_COMPARABLE:
        return _equivalence(question, judgement)
    match judgement.verdict:
        case Verdict.NOT_COMPARABLE:
            return ClaimVerdict.NOT_COMPARABLE, judgement.reason
        case Verdict.NO_EVIDENCE:
            return ClaimVerdict.NO_EVIDENCE, judgement.reason
        case Verdict.EQUIVALENT:
            # The claim states a relevant difference, which the data rule out.
            return ClaimVerdict.CONTRADICTED, "the two sides are equivalent: any difference is smaller than the margin"
    assert result.difference is not None, "a verdict without a difference"
    if (result.difference > 0) != (claim.expect == "higher"):
        return ClaimVerdict.CONTRADICTED, "the difference has the opposite sign"
    if judgement.verdict is Verdict.BELOW_MARGIN:
        return ClaimVerdict.NO_EVIDENCE, f"there is a difference below the margin: {judgement.reason}"
    return ClaimVerdict.SUPPORTED, ""


def _equivalence(question: Question, judgement: Judgement) -> tuple[ClaimVerdict, str]:
    """Judge a claim of equivalence by two one-sided tests.

    Even a significant difference supports the claim if the 90% interval lies within the margin. The claim is
    contradicted only if the 90% interval lies outside the margin and the difference is significant after Holm's
    correction.
    """
    if within_margin(question):
        return ClaimVerdict.SUPPORTED, ""
    result, margin = question.result, question.margin
    if result.interval_90 is None:
        return ClaimVerdict.NO_EVIDENCE, "there is no 90% interval"
    low, high = result.interval_90
    where = f"the 90% interval [{low:.3g}, {high:.3g}]"
    if (low >= margin or high <= -margin) and judgement.verdict in DIFFERENT:
        return ClaimVerdict.CONTRADICTED, f"{where} lies outside ±{margin:.3g}"
    if -margin < low and high < margin:
        both = count(result.diverged_both, "seed")
        return ClaimVerdict.NO_EVIDENCE, f"both sides diverged on {both}, so the size of the difference is unknown"
    return ClaimVerdict.NO_EVIDENCE, f"{where} does not lie within ±{margin:.3g}"


def _ended(side: Arm | float, seed: int) -> bool:
    return not isinstance(side, Arm) or side.status(seed) in ENDED


def _median(side: Arm | float, metric: str) -> float | None:
    if not isinstance(side, Arm):
        return None
    values = [value for value in side.values(metric) if value == value]
    return statistics.median(values) if values else None
