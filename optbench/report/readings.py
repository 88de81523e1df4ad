"""The readings of claims in a report: one line for each part, and tables of all readings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optbench.counting import count
from optbench.report.document import Block, Cell, Fold, Table, Tone, columns
from optbench.report.numbers import UNDEFINED, decimals, estimate, fixed, words
from optbench.stats.arms import Arm
from optbench.stats.claims import ClaimPart, JudgedClaim
from optbench.stats.readings import JudgedReading, Says, counts
from optbench.suite.readings import ReadingCell

ELSEWHERE = "Every reading of the claims: --format markdown, html or json."
PRIMARY = "*"
"""The symbol after the name of the primary reading."""


def reading_lines(claims: Sequence[JudgedClaim]) -> Iterable[str]:
    """Yield a summary of the readings of each part."""
    for number, claim in enumerate(claims, start=1):
        for part in claim.parts:
            if part.readings:
                yield f"claim {number}, {part_label(part)}: {summary(part.readings)}"


def summary(readings: Sequence[JudgedReading]) -> str:
    """Count the readings with each result.

    For example, `lower in 3, higher in 40, open in 1 of 44 readings (descriptive: the cells are correlated)`.
    """
    found = counts(readings)
    undefined = found.pop(Says.UNDEFINED)
    if not any(found.values()):
        return f"none of {count(undefined, 'reading')} could be compared"
    said = ", ".join(f"{says} in {n}" for says, n in found.items())
    rest = f"; undefined in {undefined} more" if undefined else ""
    return f"{said} of {count(sum(found.values()), 'reading')}{rest} (descriptive: the cells are correlated)"


def reading_tables(claims: Sequence[JudgedClaim]) -> Iterable[Block]:
    """Yield a folded block with one table for each part that has readings."""
    tables = [
        _table(f"Readings of claim {number}, {part_label(part)}", part)
        for number, claim in enumerate(claims, start=1)
        for part in claim.parts
        if part.readings
    ]
    if tables:
        yield Fold("Readings of claims", tuple(tables), instead=ELSEWHERE)


def _table(caption: str, part: ClaimPart) -> Table:
    default = default_layer(part.readings)
    keys = [key for key in ("layer", "data") if len({getattr(reading.cell, key) for reading in part.readings}) > 1]
    texts = ("metric", *keys, "says")
    titles = columns(*texts, "difference\n[95% interval]", "relative", "left", "right", "n", texts=len(texts))
    rows = []
    for reading in part.readings:
        cell, result, digits = reading.cell, reading.result, decimals(reading.cell.name)
        told = [words(cell.metric) + (f" {PRIMARY}" if reading.primary else "")]
        told += [getattr(cell, key) or default for key in keys]
        says = f"{reading.says}: {reading.reason}" if reading.reason else str(reading.says)
        tone: Tone = "warning" if reading.says is Says.UNDEFINED else "plain"
        values = (
            estimate(result.difference, result.interval, digits),
            UNDEFINED if reading.relative is None else percent(reading.relative[0]),
            fixed(result.median_a, digits),
            fixed(result.median_b if isinstance(part.right, Arm) else part.right, digits),
            str(result.n),
        )
        rows.append((*map(Cell, told), Cell(says, tone), *map(Cell, values)))
    return Table(f"{caption} ({PRIMARY} gives the verdict)", titles, tuple(rows))


def default_layer(readings: Sequence[JudgedReading]) -> str:
    """Return the name shown for readings without a layer: `features` if all readings are of ranks, else `default`."""
    return "features" if all(reading.metric.placed for reading in readings) else "default"


def percent(value: float) -> str:
    """Format a fraction as `+12%`, `-3.4%` or `0.0%`."""
    shown = 100 * value
    sign = "+" if shown else ""
    return f"{shown:{sign}.{0 if abs(shown) >= 10 else 1}f}%"


def reading_name(cell: ReadingCell, in_bits: bool = False) -> str:
    """Return a reading's name, as in `effective rank activation=before` or `effective rank on the last task`."""
    return words(cell.name, in_bits) + (" on the last task" if cell.data == "last" else "")


def part_label(part: ClaimPart) -> str:
    """Return a name that identifies a part within its claim: its model, and both sides if one of them is swept."""
    swept = any(side.variant != "default" for side in part.sides)
    return f"{part.model}, {' | '.join(side.label for side in part.sides)}" if swept else part.model


def arm_label(arm: Arm) -> str:
    """Return a variant's name within a claim: the model and the optimizer, with its settings if they are swept."""
    return f"{arm.model}, {arm.label}"
