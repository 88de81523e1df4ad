"""Reports for people and programs. This package does not import torch.

`run_report` turns a `Summary` of runs into a `Report`, `comparison_report` does the same for a `Comparison`, and
`formats` render the result. Studies extend reports through the `Study` interface; no module here refers to a study by
name.
"""

from __future__ import annotations

from optbench.report.comparison_report import comparison_report
from optbench.report.document import Illustration, Report
from optbench.report.run_report import run_report
from optbench.report.summary import Summary, summarise

__all__ = ["Illustration", "Report", "Summary", "comparison_report", "run_report", "summarise"]
