"""Tuning: the setting that a tuning run chooses for each optimizer, and the budget of that choice.

This module provides what reports need, and does not train; `tuner` runs the search.
"""

from __future__ import annotations

from optbench.report.study import FigureKind, Study
from optbench.studies.tuning.figures import learning_rates, settings
from optbench.studies.tuning.records import COLUMNS, tuning_lines, tuning_records
from optbench.studies.tuning.statistics import tunings
from optbench.studies.tuning.tables import stated_tuning, tuning_blocks

TUNING = Study(
    "tunings",
    tunings,
    tuning_blocks,
    records=tuning_records,
    lines=tuning_lines,
    columns=COLUMNS,
    figures=(FigureKind("sweep", learning_rates), FigureKind("setting", settings)),
    leads=True,
    provenance=stated_tuning,
)
