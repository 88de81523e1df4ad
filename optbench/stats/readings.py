"""The results of a claim's readings, reported next to the verdict on the primary reading.

Readings are descriptive. Readings of the same networks are correlated, so their p-values are not corrected, and no
verdict is based on the number of readings that agree. The result of a reading is

- `higher` or `lower` if the uncorrected signed-rank test of `verdict` shows a difference of any size (p ≤ .05, and the
  95% interval excludes 0),
- `undefined` if no verdict is possible, and
- `open` otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from optbench.metrics import Metric
from optbench.stats.arms import Arm
from optbench.stats.comparison import pairs
from optbench.stats.paired import PairedResult, compare_paired
from optbench.stats.verdict import Question, Verdict, judge
from optbench.suite.readings import ReadingCell


class Says(StrEnum):
    """The result of a reading: how the left side compares with the right."""

    LOWER = "lower"
    HIGHER = "higher"
    OPEN = "open"
    UNDEFINED = "undefined"


@dataclass(frozen=True)
class JudgedReading:
    """One reading of one part of a claim.

    primary: whether the reading determines the claim's verdict.
    reason: why the reading is undefined; empty if it is defined.
    """

    cell: ReadingCell
    metric: Metric
    primary: bool
    result: PairedResult
    says: Says
    reason: str

    @property
    def relative(self) -> tuple[float, float, float] | None:
        """The difference and the ends of its 95% interval, divided by the absolute value of the right side's median.

        The division puts readings with different units on a common axis. None if the median is 0 or undefined, or the
        interval is undefined or unbounded.
        """
        result = self.result
        if not result.median_b or result.difference is None or result.interval is None:
            return None
        found = [value / abs(result.median_b) for value in (result.difference, *result.interval)]
        return (found[0], found[1], found[2]) if all(abs(value) < float("inf") for value in found) else None


def judge_readings(
    cells: Sequence[ReadingCell],
    primary: ReadingCell,
    sides: tuple[Arm, Arm | float],
    seeds: Sequence[int],
    metrics: Mapping[str, Metric],
    *,
    comparable: bool,
) -> tuple[JudgedReading, ...]:
    """Judge every reading of one part, without correction.

    seeds: the seeds that finished on both sides.
    comparable: False if trials with the same seed do not form pairs.
    """
    return tuple(_judged(cell, cell == primary, sides, seeds, metrics[cell.name], comparable) for cell in cells)


def counts(readings: Sequence[JudgedReading]) -> dict[Says, int]:
    """Count the readings by result; every result is included, in a fixed order."""
    found = Counter(reading.says for reading in readings)
    return {says: found[says] for says in Says}


def _judged(
    cell: ReadingCell,
    primary: bool,
    sides: tuple[Arm, Arm | float],
    seeds: Sequence[int],
    metric: Metric,
    comparable: bool,
) -> JudgedReading:
    result = compare_paired(pairs(*sides, seeds, metric, cell.data), metric.direction)
    # With one question and no margin, there is no correction, and any significant difference gets a direction.
    [found] = judge([Question(result, metric.direction, 0.0, comparable=comparable, reason="initial weights differ")])
    if found.verdict is Verdict.NOT_COMPARABLE:
        return JudgedReading(cell, metric, primary, result, Says.UNDEFINED, found.reason)
    if found.verdict is Verdict.NO_EVIDENCE:
        return JudgedReading(cell, metric, primary, result, Says.OPEN, "")
    assert result.difference is not None, "a verdict without a difference"
    return JudgedReading(cell, metric, primary, result, Says.HIGHER if result.difference > 0 else Says.LOWER, "")
