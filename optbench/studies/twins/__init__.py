"""Twins: the distance between two optimizers in weight space during training."""

from __future__ import annotations

from optbench.report.records import PAIR
from optbench.report.study import FigureKind, Study
from optbench.studies.twins.figures import twins as twin_figures
from optbench.studies.twins.records import PLACE, twin_lines, twin_records
from optbench.studies.twins.statistics import twins
from optbench.studies.twins.tables import twin_blocks

TWINS = Study(
    "twins",
    twins,
    twin_blocks,
    records=twin_records,
    lines=twin_lines,
    columns=(*PAIR, *PLACE),
    figures=(FigureKind("twins", twin_figures),),
)
