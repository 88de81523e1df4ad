"""Reports with every study in them, as the command line makes them."""

from __future__ import annotations

from collections.abc import Sequence

from optbench.report import Summary, comparison_report, run_report
from optbench.report import figures as drawings
from optbench.report import summarise as summed_up
from optbench.report.formats import render_text
from optbench.stats.comparison import Comparison
from optbench.stats.gates import JudgedGate
from optbench.stats.results import Results
from optbench.studies import STUDIES


def summarise(results: Sequence[Results]) -> Summary:
    return summed_up(results, STUDIES)


def figures(results: Sequence[Results]) -> list[drawings.Figure]:
    return drawings.figures(results, STUDIES)


def report_json(summary: Summary) -> str:
    return render_text(run_report(summary), "json")


def report_csv(summary: Summary) -> str:
    return render_text(run_report(summary), "csv")


def comparison_json(comparison: Comparison, gates: Sequence[JudgedGate] = ()) -> str:
    return render_text(comparison_report(comparison, gates), "json")


def comparison_csv(comparison: Comparison) -> str:
    return render_text(comparison_report(comparison), "csv")
