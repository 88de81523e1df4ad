"""The primary comparison of a run: optimizers with a single setting against the first of them, on primary metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from optbench.report.comparison_report import judged_cell, place
from optbench.report.document import Block, Cell, Heading, Paragraph, Table, columns
from optbench.report.numbers import marked, name_with_arrow
from optbench.report.summary import Section, Summary
from optbench.stats.comparison import ArmComparison, compare_arms
from optbench.stats.power import MIN_PAIRS


def primary_blocks(summary: Summary) -> Iterable[Block]:
    """Yield the verdicts on the optimizers of a single run.

    Swept optimizers, tuning runs and pairs with too few seeds have no verdicts. Nothing is yielded for several runs.
    """
    if len(summary.runs) != 1:
        return
    pairs = [pair for section in summary.sections for pair in _pairs(section)]
    if not pairs:
        return
    metrics = {found.metric.name: found.metric for pair in pairs for found in pair.metrics}
    rows = []
    for pair in pairs:
        cells = [judged_cell(found, with_size=True) if (found := pair.metric(name)) else Cell("") for name in metrics]
        labels = [Cell(marked(arm.label, arm.shortcoming)) for arm in (pair.a, pair.b)]
        rows.append((Cell(place(pair)), *labels, *cells))
    yield Heading("Primary comparison")
    titles = ("where", "A", "against B", *map(name_with_arrow, metrics.values()))
    yield Table("Verdicts on the primary metrics", columns(*titles, texts=len(titles)), tuple(rows), keys=2)
    said = "Every optimizer with a single setting is compared with the first such optimizer, paired by seed. Cells show"
    yield Paragraph(
        f"{said} the verdict and A - B. optbench compare shows intervals and compares any other pair.", "quiet"
    )


def _pairs(section: Section) -> Iterable[ArmComparison]:
    variants = Counter(row.arm.optimizer for row in section.rows)
    arms = [row.arm for row in section.rows if variants[row.arm.optimizer] == 1 and row.split == "test"]
    for arm in arms[1:]:
        pair = compare_arms(arm, arms[0], primary_only=True)
        if len(pair.seeds) >= MIN_PAIRS:
            yield pair
