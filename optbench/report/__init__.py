"""Reports for people and programs. This package does not import torch.

A `Summary` of runs, or a `Comparison`, is turned into a `Report`, a document that `formats` render. Studies extend
reports through `Study`; no module here refers to a study by name.
"""

from __future__ import annotations

from optbench.report.comparison_report import comparison_report
from optbench.report.document import Illustration, Report
from optbench.report.run_report import run_report
from optbench.report.summary import Summary, summarise

__all__ = ["Illustration", "Report", "Summary", "comparison_report", "run_report", "summarise"]
