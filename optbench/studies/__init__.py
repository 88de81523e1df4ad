"""Analyses that particular suites add to reports. To add a study, add a folder here and an entry in `STUDIES`.

A folder contains the study's statistics, tables, figures and records. The folder `tuning` also contains the
search, which trains networks. Report code does not refer to studies by name.
"""

from __future__ import annotations

from typing import Any

from optbench.report.study import Study
from optbench.studies.pairs import PAIRS
from optbench.studies.plasticity import PLASTICITY
from optbench.studies.switching import SWITCHING
from optbench.studies.tuning import TUNING
from optbench.studies.twins import TWINS

STUDIES: tuple[Study[Any], ...] = (SWITCHING, PAIRS, TWINS, TUNING, PLASTICITY)
"""All studies, in the order in which a report shows them."""
