"""Reports that include every study, as from the command line."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from optbench.report import Summary, comparison_report, run_report
from optbench.report import figures as drawings
from optbench.report import summarise as summed_up
from optbench.report.figures import Panel
from optbench.report.figures.style import SEEDS, STYLE
from optbench.report.formats import render_text
from optbench.stats.comparison import Comparison
from optbench.stats.gates import JudgedGate
from optbench.stats.results import Results
from optbench.studies import STUDIES


def summarise(results: Sequence[Results]) -> Summary:
    return summed_up(results, STUDIES)


def figures(results: Sequence[Results]) -> list[drawings.Figure]:
    return drawings.figures(results, STUDIES)


def on_axes(panel: Panel) -> Axes:
    """Draw a panel and return its axes for inspection."""
    with matplotlib.style.context(["default", STYLE]):
        axes = Canvas(figsize=(panel.width, panel.height)).add_subplot()
        panel.draw(axes)
    return axes


def seed_curves(axes: Axes) -> list[NDArray[np.float64]]:
    """Return the points (points, 2) of every line that shows one seed."""
    drawn = (one for one in axes.collections if isinstance(one, LineCollection) and one.get_label() == SEEDS)
    return [curve for collection in drawn for curve in collection.get_segments()]


def report_json(summary: Summary) -> str:
    return render_text(run_report(summary), "json")


def report_csv(summary: Summary) -> str:
    return render_text(run_report(summary), "csv")


def comparison_json(comparison: Comparison, gates: Sequence[JudgedGate] = ()) -> str:
    return render_text(comparison_report(comparison, gates), "json")


def comparison_csv(comparison: Comparison) -> str:
    return render_text(comparison_report(comparison), "csv")
