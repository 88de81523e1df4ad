"""Comparisons of two optimizers' solutions, and of the solutions that one optimizer finds for different data orders."""

from __future__ import annotations

from optbench.report.records import PAIR
from optbench.report.study import Study
from optbench.studies.pairs.records import pair_records
from optbench.studies.pairs.statistics import solution_pairs
from optbench.studies.pairs.tables import pair_blocks

PAIRS = Study("pairs", solution_pairs, pair_blocks, records=pair_records, lines=pair_records, columns=PAIR)
