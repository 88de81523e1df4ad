"""Claims in a report: their verdicts, their parts, and the variants left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from optbench.counting import count, grouped
from optbench.report.document import Block, Cell, Column, Heading, Items, Paragraph, Table, Tone, columns
from optbench.report.matching import matched_text, matching_lines
from optbench.report.numbers import (
    NOT_LEARNT,
    UNDEFINED,
    decimals,
    dormant_line,
    estimate,
    fixed,
    marked,
    p_value,
    words,
)
from optbench.report.readings import arm_label, part_label, reading_lines, reading_name, reading_tables
from optbench.report.summary import RunSummary
from optbench.stats.arms import Arm
from optbench.stats.between import Between
from optbench.stats.claims import ClaimPart, ClaimVerdict, JudgedClaim
from optbench.stats.conditions import Unmet
from optbench.stats.dormant import is_rank
from optbench.suite.claims import Bounds
from optbench.suite.sides import side_text

TONES: Mapping[ClaimVerdict, Tone] = {
    ClaimVerdict.SUPPORTED: "good",
    ClaimVerdict.CONTRADICTED: "bad",
    ClaimVerdict.NO_EVIDENCE: "plain",
    ClaimVerdict.NOT_COMPARABLE: "warning",
}

Numbered: TypeAlias = Mapping[int, JudgedClaim]
"""The claims of a report by number."""


def claim_blocks(run: RunSummary, several: bool) -> Iterable[Block]:
    """Yield the blocks on a run's claims: verdicts, parts, warnings, and the variants left out.

    several: whether the report covers several runs.
    """
    if not run.claims:
        return
    yield Heading(f"Claims of {run.suite}{f' in {run.run}' if several else ''}")
    counts = [f"{sum(c.verdict is v for c in run.claims)} {v}" for v in ClaimVerdict]
    yield Paragraph(f"Stated in the run's suite: {', '.join(counts)}.")
    numbered = dict(enumerate(run.claims, start=1))
    overview = [
        (Cell(str(number)), Cell(stated(claim)), verdict_cell(claim, numbered)) for number, claim in numbered.items()
    ]
    yield Table("Claims", columns("", "claim", "verdict", texts=3), tuple(overview))
    if read := [*matching_lines(run.claims), *reading_lines(run.claims)]:
        yield Items(tuple(read))
    if any(claim.parts for claim in run.claims):
        yield _parts(run.claims)
    yield from reading_tables(run.claims)
    if warnings := warnings_of(numbered):
        yield Items(tuple(warnings), "warning")
    reasons = list(_reasons(run))
    reasons += [
        f"claim {number}, {arm_label(found.arm)}: left out: "
        + "; ".join(unmet_text(one, claim.in_bits) for one in found.unmet)
        for number, claim in enumerate(run.claims, start=1)
        for found in claim.left_out
    ]
    reasons += [
        f"claim {number}, {arm_label(arm)}: the condition is judged on the {arm.count('ok')} of "
        f"{count(len(arm.trials), 'seed')} that are ok"
        for number, claim in enumerate(run.claims, start=1)
        for arm in claim.partly_judged
    ]
    if reasons:
        yield Items(tuple(reasons), "quiet")
    conditional = any(claim.claim.where for claim in run.claims)
    equivalence = any(claim.claim.expect == "equivalent" for claim in run.claims)
    yield Paragraph(
        "For each part: the difference left minus right over paired seeds (Hodges-Lehmann estimate), its 95% interval "
        "from the exact signed-rank test, and p after Holm's correction over the parts of the claim. A claim is "
        "supported if every part is, and contradicted if any part is."
        + (
            " Equivalence is supported if the 90% interval lies within the margin (two one-sided tests)"
            ", and contradicted if it lies outside the margin and the difference is significant."
            if equivalence
            else ""
        )
        + (" Variants that do not meet a claim's condition are left out." if conditional else ""),
        "quiet",
    )


def stated(claim: JudgedClaim) -> str:
    """Return the text of a claim with its condition and source."""
    source = f" ({claim.claim.source})" if claim.claim.source else ""
    about = condition(claim)
    return f"{claim.claim.text or expectation(claim)}{f' [{about}]' if about else ''}{source}"


def verdict_cell(claim: JudgedClaim, numbered: Numbered) -> Cell:
    """Return a cell with the verdict on a claim, followed by any premises that are not supported.

    numbered: all claims of the run.
    """
    verdict, tone = _verdict(claim), TONES[claim.verdict]
    for which, premise in numbered.items():
        if premise.name in claim.claim.given and premise.verdict is not ClaimVerdict.SUPPORTED:
            verdict, tone = f"{verdict}; given claim {which}, which is {premise.verdict}", "warning"
    return Cell(verdict, tone)


def warnings_of(numbered: Numbered) -> list[str]:
    """Return the warnings about the networks that the claims compare, each with the numbers of the claims it concerns.

    The warnings are about tasks not learnt, trials above the target training loss, and ranks of networks with many
    dormant units.
    """

    def above_target(side: Arm) -> str:
        n, what = side.count("above_target"), "pair" if isinstance(side, Between) else "trial"
        return f"{n} of {count(len(side.trials), what)} above the target training loss" if n else ""

    ranks = {number: claim for number, claim in numbered.items() if is_rank(claim.claim.primary.name)}
    dormant = list(_of_parts(ranks, lambda arm: arm.many_dormant))
    return [
        *(f"{NOT_LEARNT} {said}" for said in _of_parts(numbered, lambda arm: arm.learning_warning)),
        *(f"{said}; their seeds are left out." for said in _of_parts(numbered, above_target, lambda part: part.sides)),
        *([dormant_line(dormant)] if dormant else []),
    ]


def _of_parts(
    numbered: Numbered,
    say: Callable[[Arm], object],
    about: Callable[[ClaimPart], Iterable[Arm]] = lambda part: part.arms,
) -> Iterable[str]:
    """Yield each distinct remark once, with the numbers of the claims that it concerns.

    say: function that returns the remark on an arm, or a falsy value if there is none.
    about: function that returns the arms of a part to pass to `say`.
    """
    found: dict[str, list[int]] = {}
    for number, claim in numbered.items():
        for arm, said in ((arm, say(arm)) for part in claim.parts for arm in about(part)):
            if said:
                numbers = found.setdefault(f"{arm_label(arm)}: {said}", [])
                numbers += [number] if number not in numbers else []
    for text, numbers in found.items():
        yield f"{'claim' if len(numbers) == 1 else 'claims'} {', '.join(map(str, numbers))}, {text}"


def _reasons(run: RunSummary) -> Iterable[str]:
    """Yield each reason why there is no stronger verdict, preceded by the parts to which the reason applies.

    Having too few seeds is not listed as a reason, because the report states it at the beginning.
    """
    shared = grouped(
        (f"{part.verdict}: {part.reason}", f"claim {number}, {part_label(part)}")
        for number, claim in enumerate(run.claims, start=1)
        for part in claim.parts
        if part.reason and len(run.seeds) >= (part.judgement.seeds_needed or 0)
    )
    return (f"{'; '.join(parts)}: {reason}" for reason, parts in shared.items())


def _verdict(claim: JudgedClaim) -> str:
    """Format the verdict on a claim, e.g. `supported (3 of 3; 4 left out)`.

    In the example, 3 of the claim's 3 parts have this verdict, and 4 variants were left out. For a claim
    with a single part, the count of parts is omitted. The text is marked if a side failed to learn a task.
    """
    agree = sum(part.verdict is claim.verdict for part in claim.parts)
    counts = [f"{agree} of {len(claim.parts)}"] if len(claim.parts) > 1 else []
    left_out = len(claim.left_out) + len(claim.unmatched)
    counts += [f"{left_out} left out"] if left_out else []
    text = f"{claim.verdict} ({'; '.join(counts)})" if counts else str(claim.verdict)
    return marked(text, any(part.not_learnt for part in claim.parts))


def _parts(claims: Sequence[JudgedClaim]) -> Table:
    numeric = ("difference\n[95% interval]", "Holm p", "expected", "left,\nmedian", "right,\nmedian", "n")
    beside = any(claim.claim.beside for claim in claims)
    more = [Column("beside: left, right", numeric=False)] if beside else []
    titles = (*columns("claim", "where", "verdict", *numeric, texts=3), *more)
    rows = []
    for number, claim in enumerate(claims, start=1):
        digits = decimals(claim.claim.primary.name)
        for part in claim.parts:
            result = part.result
            right = result.median_b if isinstance(part.right, Arm) else part.right
            said = "; ".join(
                f"{words(name, claim.in_bits)} {fixed(left, decimals(name))}, {fixed(right, decimals(name))}"
                for name, (left, right) in part.beside.items()
            )
            equivalence = claim.claim.expect == "equivalent"
            cells = [
                part_estimate(claim, part),
                UNDEFINED if equivalence else p_value(part.judgement.holm_p),  # the p-value belongs to another test
                _expected(claim),
                fixed(result.median_a, digits),
                fixed(right, digits),
                str(result.n),
            ]
            cells += [said] if beside else []
            where = (
                Cell(str(number)),
                Cell(part_label(part)),
                Cell(marked(part.verdict, part.not_learnt), TONES[part.verdict]),
            )
            rows.append((*where, *map(Cell, cells)))
    return Table("Claims, part by part", titles, tuple(rows), keys=2)


def part_estimate(claim: JudgedClaim, part: ClaimPart) -> str:
    """Format a part's difference and its 95% interval, e.g. `+0.030 [0.015, 0.045]`.

    For a claim of equivalence, use the 90% interval and append `(90%)`.
    """
    result, digits = part.result, decimals(claim.claim.primary.name)
    if claim.claim.expect == "equivalent":
        return f"{estimate(result.difference, result.interval_90, digits)} (90%)"
    return estimate(result.difference, result.interval, digits)


def _expected(claim: JudgedClaim) -> str:
    """Format the differences that a claim expects, e.g. `≥ 0.005` or, for equivalence, `within ±0.005`."""
    if claim.claim.expect == "equivalent":
        return f"within ±{claim.margin:g}"
    higher = claim.claim.expect == "higher"
    if not claim.margin:
        return "> 0" if higher else "< 0"
    return f"≥ {claim.margin:g}" if higher else f"≤ -{claim.margin:g}"


def expectation(claim: JudgedClaim) -> str:
    """Return what a claim expects, e.g. `forgetting of shampoo lower than that of adamw, by 0.005 or more`."""
    said = claim.claim
    what = f"{reading_name(said.primary, claim.in_bits)} of {side_text(said.left)}"
    right = f"{'' if isinstance(said.right, float) else 'that of '}{side_text(said.right)}"
    if said.expect == "equivalent":
        return f"{what} equivalent to {right}, within {claim.margin:g}"
    by = f", by {claim.margin:g} or more" if claim.margin else ""
    return f"{what} {said.expect} than {right}{by}"


def condition(judged: JudgedClaim) -> str:
    """Describe a claim's matching and condition, e.g. `where the mean last task accuracy is above 0.9`.

    The text is empty if the claim has neither.
    """
    where = judged.claim.where.items()
    said = [f"the mean {words(metric, judged.in_bits)} is {_bounds(bounds)}" for metric, bounds in where]
    return ", ".join(filter(None, (matched_text(judged), f"where {' and '.join(said)}" if said else "")))


def unmet_text(unmet: Unmet, in_bits: bool) -> str:
    """Describe an unmet condition, e.g. `mean last task accuracy 0.374, not above 0.9`.

    If some planned seeds have no value, the text gives the number of seeds in the mean, e.g. `over 2 of 3 seeds`.
    """
    metric, seeds = words(unmet.metric, in_bits), count(unmet.planned, "seed")
    if unmet.mean is None:
        return f"{metric} has no value on any of {seeds}"
    over = f" over {unmet.n} of {seeds}" if unmet.n < unmet.planned else ""
    return f"mean {metric} {unmet.mean:.4g}{over}, not {_bounds(unmet.bounds)}"


def _bounds(bounds: Bounds) -> str:
    sides = (("above", bounds.above), ("below", bounds.below))
    return " and ".join(f"{side} {value:g}" for side, value in sides if value is not None)
