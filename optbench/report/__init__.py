"""From results to what a person reads, or a program. Imports no torch.

A `Summary` of runs, or a `Comparison`, becomes a `Document`; formats render documents. `records` serves programs.
"""

from __future__ import annotations

from optbench.report.comparison_report import comparison_report
from optbench.report.document import Document, Format, Illustration
from optbench.report.run_report import run_report
from optbench.report.summary import Summary, summarise

__all__ = ["Document", "Format", "Illustration", "Summary", "comparison_report", "run_report", "summarise"]
