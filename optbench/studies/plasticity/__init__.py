"""Plasticity: whether networks still learn after many tasks, and their state before each task."""

from __future__ import annotations

from optbench.report.records import PAIR
from optbench.report.study import FigureKind, Study
from optbench.studies.plasticity.figures import plasticity
from optbench.studies.plasticity.records import TASK, online_lines, online_records
from optbench.studies.plasticity.statistics import learnt_online
from optbench.studies.plasticity.tables import online_blocks

PLASTICITY = Study(
    "plasticity",
    learnt_online,
    online_blocks,
    records=online_records,
    lines=online_lines,
    columns=(PAIR[0], TASK),
    figures=(FigureKind("plasticity", plasticity),),
    leads=True,
)
