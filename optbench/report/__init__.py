"""From a run's tables to what a person reads. Imports no torch; raw accuracies become measures here, on reading."""

from __future__ import annotations

from optbench.report.summary import Section, Spread, Summary, SummaryRow, summarise
from optbench.report.terminal import render

__all__ = ["Section", "Spread", "Summary", "SummaryRow", "render", "summarise"]
