"""Switched optimizers: do the first steps decide the solution?"""

from __future__ import annotations

from optbench.report.study import FigureKind, Study
from optbench.studies.switching.figures import switching
from optbench.studies.switching.records import SWITCH, beside_results, switching_records
from optbench.studies.switching.statistics import switchings
from optbench.studies.switching.tables import switching_blocks

SWITCHING = Study(
    "switches",
    switchings,
    switching_blocks,
    records=switching_records,
    columns=SWITCH,
    beside=beside_results,
    figures=(FigureKind("switch", switching),),
)
