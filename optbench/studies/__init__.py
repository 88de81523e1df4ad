"""What particular suites add to the report on their runs. To add a study: a folder here, and a line in `STUDIES`.

A folder has the study's statistics, tables, figures and records (that of tuning also the search itself, which trains);
no report knows a study by name.
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
"""In the order of a report."""
