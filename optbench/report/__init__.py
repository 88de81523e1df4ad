"""Reports for people and programs. Imports no torch.

A `Summary` of runs, or a `Comparison`, becomes a `Report`; `formats` render documents. Studies extend a report through
`Study`; no module here refers to one by name.
"""

from __future__ import annotations

from optbench.report.comparison_report import comparison_report
from optbench.report.document import Illustration, Report
from optbench.report.run_report import run_report
from optbench.report.summary import Summary, summarise

__all__ = ["Illustration", "Report", "Summary", "comparison_report", "run_report", "summarise"]
