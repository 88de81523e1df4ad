"""A side-by-side report on the claims of two runs: changed verdicts and the underlying numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optbench.counting import count
from optbench.report.claims import TONES, Numbered, part_estimate, stated, verdict_cell, warnings_of
from optbench.report.document import (
    Block,
    Cell,
    Fold,
    Heading,
    Items,
    Paragraph,
    Record,
    Records,
    Report,
    Table,
    columns,
)
from optbench.report.numbers import UNDEFINED, marked
from optbench.report.readings import part_label
from optbench.report.records import claim_record
from optbench.report.run_report import FOLDED, headline
from optbench.report.summary import RunSummary
from optbench.stats.arms import Arm
from optbench.stats.claims import ClaimPart, JudgedClaim
from optbench.stats.claims_against import ClaimOfBoth
from optbench.suite.sides import side_text

MANY = 12
"""If two suites differ in more settings than this, the list of differences is folded."""
_OF_PART = ("difference", "low", "high", "holm_p", "n", "left_median", "right_median")
COLUMNS = (
    *("claim", "experiment", "metric", "left", "right", "expect", "compared", "changes", "verdict_a", "verdict_b"),
    *("model", "left_variant", "right_variant"),
    *(f"{name}_{side}" for side in "ab" for name in ("part_verdict", *_OF_PART)),
)


def claims_against(a: RunSummary, b: RunSummary, claims: Sequence[ClaimOfBoth], apart: Sequence[str]) -> Report:
    """Build the document on the claims of two runs.

    apart: one text for each setting that differs between the suites of the two runs.
    """
    blocks: list[Block] = []
    for side, run in (("A", a), ("B", b)):
        blocks.append(Paragraph(f"{side} = {headline(run)}", "plain" if run.status == "complete" else "warning"))
        if run.too_few_seeds:
            blocks.append(Paragraph(f"{side}: {run.too_few_seeds}.", "warning"))
    if tuning := [run.run for run in (a, b) if run.stage == "tune"]:
        said = f"accuracies of {' and '.join(dict.fromkeys(tuning))} are on validation data (tuning run)"
        blocks.append(Items((said,), "warning"))
    numbered = dict(enumerate(claims, start=1))
    changes = tuple(_change(number, claim) for number, claim in numbered.items() if claim.changes)
    blocks += [Heading("Verdicts"), Paragraph(_counted(claims))]
    if changes:
        blocks.append(Items(changes, "warning"))
    if notes := tuple(_notes(numbered)):
        blocks.append(Items(notes))
    sides = [{n: judged for n, claim in numbered.items() if (judged := getattr(claim, side))} for side in "ab"]
    blocks.append(_verdicts(numbered, *sides))
    if any(claim.parts for claim in claims):
        blocks.append(_parts(numbered))
    if warnings := [f"{side}: {said}" for side, of in zip("AB", sides, strict=True) for said in warnings_of(of)]:
        blocks.append(Items(tuple(warnings), "warning"))
    blocks += _apart(apart)
    blocks += [Paragraph(text, "quiet") for text in _LEGEND]
    return Report(
        f"optbench: claims of {a.run} against {b.run}", (*blocks, *_records(a, b, claims, apart)), NAME, COLUMNS
    )


NAME = "optbench-claims-against"
_LEGEND = (
    "Each run is judged on its own data. Each difference is left minus right over paired seeds (Hodges-Lehmann "
    "estimate), with its 95% interval from the exact signed-rank test (90% for a claim of equivalence).",
    "A verdict that changes to or from 'no evidence' does not by itself show that the effect differs between the runs: "
    "compare the intervals.",
)


def _counted(claims: Sequence[ClaimOfBoth]) -> str:
    """Count changed verdicts and uncompared claims, e.g. `3 of 42 verdicts change; 2 claims are stated in A only.`"""
    compared = [claim for claim in claims if claim.compared]
    changed, reverse = sum(claim.changes for claim in compared), sum(claim.reversed for claim in compared)
    said = [f"{changed} of {count(len(compared), 'verdict')} {'changes' if len(compared) == 1 else 'change'}"]
    said[0] += f", {reverse} of them between supported and contradicted" if reverse else ""
    kinds = {
        "stated in A only": sum(claim.b is None for claim in claims),
        "stated in B only": sum(claim.a is None for claim in claims),
        "different in A and B": sum(bool(claim.apart) for claim in claims),
        "not comparable in A or B": sum(claim.alike and not claim.compared for claim in claims),
    }
    said += [f"{count(n, 'claim is', 'claims are')} {what}" for what, n in kinds.items() if n]
    return f"{'; '.join(said)}."


def _change(number: int, claim: ClaimOfBoth) -> str:
    return f"claim {number}, {claim.name}: {claim.verdicts[0]} in A, {claim.verdicts[1]} in B"


def _notes(numbered: Mapping[int, ClaimOfBoth]) -> Iterable[str]:
    """Yield lines on claims whose settings differ between A and B, and on claims or parts that only one run has."""
    for number, claim in numbered.items():
        if claim.apart:
            what = "; ".join(f"{name} {_short(a)} in A, {_short(b)} in B" for name, a, b in claim.apart)
            yield f"claim {number}, {claim.name}: not compared because its settings differ: {what}"
        elif not claim.alike:
            yield f"claim {number}, {claim.name}: stated in {'A' if claim.b is None else 'B'} only"
        else:
            for side, other in (("A", "b"), ("B", "a")):
                alone = [part_label(part.one) for part in claim.parts if getattr(part, other) is None]
                if alone:
                    yield f"claim {number}, {claim.name}: judged in {side} only: {'; '.join(alone)}"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _verdicts(numbered: Mapping[int, ClaimOfBoth], of_a: Numbered, of_b: Numbered) -> Table:
    rows = []
    for number, claim in numbered.items():
        cells = [
            Cell(UNDEFINED, "quiet") if judged is None else verdict_cell(judged, of)
            for judged, of in ((claim.a, of_a), (claim.b, of_b))
        ]
        changes = Cell("yes", "warning") if claim.changes else Cell("no" if claim.compared else UNDEFINED, "quiet")
        rows.append((Cell(str(number)), Cell(stated(claim.one)), *cells, changes))
    return Table("Claims", columns("", "claim", "in A", "in B", "changes", texts=5), tuple(rows))


def _parts(numbered: Mapping[int, ClaimOfBoth]) -> Table:
    titles = columns(
        "claim", "where", "in A", "in B", "A: difference\n[interval]", "B: difference\n[interval]", texts=4
    )
    rows = []
    for number, claim in numbered.items():
        for part in claim.parts:
            sides = ((claim.a, part.a), (claim.b, part.b))
            cells = [*(_part_verdict(one) for _, one in sides), *(_estimate(judged, one) for judged, one in sides)]
            rows.append((Cell(str(number)), Cell(part_label(part.one)), *cells))
    return Table("Claims, part by part", titles, tuple(rows), keys=2)


def _part_verdict(part: ClaimPart | None) -> Cell:
    return Cell(UNDEFINED) if part is None else Cell(marked(part.verdict, part.not_learnt), TONES[part.verdict])


def _estimate(judged: JudgedClaim | None, part: ClaimPart | None) -> Cell:
    if judged is None or part is None:
        return Cell(UNDEFINED)
    return Cell(f"{part_estimate(judged, part)}, n {part.result.n}")


def _apart(apart: Sequence[str]) -> Iterable[Block]:
    if not apart:
        yield Paragraph("The two suites do not differ in training or measurements.")
        return
    yield Heading("Differences between the suites (A, B)")
    if len(apart) <= MANY:
        yield Items(tuple(apart))
    else:
        yield Fold(count(len(apart), "setting"), (Items(tuple(apart)),), f"{count(len(apart), 'setting')}: {FOLDED}.")


def _records(a: RunSummary, b: RunSummary, claims: Sequence[ClaimOfBoth], apart: Sequence[str]) -> list[Records]:
    def run(found: RunSummary) -> dict[str, Any]:
        return {"run": found.run, "suite": found.suite, "suite_hash": found.suite_hash, "status": found.status}

    def claim(found: ClaimOfBoth) -> dict[str, Any]:
        flags = {"compared": found.compared, "changes": found.changes, "reversed": found.reversed}
        otherwise = [{"setting": name, "a": x, "b": y} for name, x, y in found.apart]
        sides = {
            side: None if judged is None else claim_record(of.run, judged)
            for side, of, judged in (("a", a, found.a), ("b", b, found.b))
        }
        return {"claim": found.name, **flags, "stated_otherwise": otherwise, **sides}

    counts = {key: sum(getattr(found, key) for found in claims) for key in ("compared", "changes", "reversed")}
    return [
        Records("a", lambda: run(a)),
        Records("b", lambda: run(b)),
        Records("counts", lambda: {"claims": len(claims), **counts}),
        Records("differences", lambda: list(apart)),
        Records("claims", lambda: [claim(found) for found in claims], lambda: _lines(claims)),
    ]


def _lines(claims: Sequence[ClaimOfBoth]) -> Iterable[Record]:
    """Yield a csv record for each part of each claim, with the results of both runs."""
    for claim in claims:
        verdicts = dict(zip(("verdict_a", "verdict_b"), claim.verdicts, strict=True))
        for part in claim.parts:
            judged = claim.a if part.a is not None else claim.b
            assert judged is not None
            said, found = judged.claim, part.one
            names = {"claim": claim.name, "experiment": said.experiment, "metric": said.primary.name}
            right_side = said.right if isinstance(said.right, float) else side_text(said.right)
            sides = {"left": side_text(said.left), "right": right_side, "expect": said.expect}
            keys = {**names, **sides, "compared": claim.compared, "changes": claim.changes, **verdicts}
            right = found.right.variant if isinstance(found.right, Arm) else None
            place = {"model": found.model, "left_variant": found.left.variant, "right_variant": right}
            yield {**keys, **place, **_side(part.a, "a"), **_side(part.b, "b")}


def _side(part: ClaimPart | None, side: str) -> Record:
    if part is None:
        values: list[Any] = [None] * (1 + len(_OF_PART))
    else:
        result = part.result
        low, high = result.interval or (None, None)
        right = result.median_b if isinstance(part.right, Arm) else part.right
        values = [part.verdict, result.difference, low, high, part.judgement.holm_p, result.n, result.median_a, right]
    return dict(zip((f"{name}_{side}" for name in ("part_verdict", *_OF_PART)), values, strict=True))
