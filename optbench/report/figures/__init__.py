"""The figures of a report. To add one, add a file here and a line in `FIGURES`.

matplotlib is imported only for drawing; `figures`, which determines and describes what can be drawn, does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optbench.report.figures.against import against
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.final_accuracy import final_accuracy
from optbench.report.figures.forgetting_curves import forgetting_curves
from optbench.report.figures.heat_maps import accuracy_matrix, class_cosine
from optbench.report.figures.pruning import pruning
from optbench.report.figures.readings import readings
from optbench.report.figures.rendering import FILE_FORMATS, FileFormat, save, to_svg
from optbench.report.figures.spectrum import spectrum
from optbench.report.figures.task_accuracy import task_accuracy
from optbench.report.figures.weight_magnitudes import weight_magnitudes
from optbench.report.study import FigureKind, Study
from optbench.stats.results import Results

FIGURES: tuple[FigureKind, ...] = (
    FigureKind("final-accuracy", final_accuracy),
    FigureKind("against", against),
    FigureKind("spectrum", spectrum),
    FigureKind("task-accuracy", task_accuracy),
    FigureKind("forgetting-curves", forgetting_curves),
    FigureKind("class-cosine", class_cosine),
    FigureKind("accuracy-matrix", accuracy_matrix),
)
"""Figures in the order in which a report shows them."""
OF_WEIGHTS: tuple[FigureKind, ...] = (
    FigureKind("pruning", pruning),
    FigureKind("weight-magnitudes", weight_magnitudes),
)
"""Figures about the weights, shown after the figures of all studies."""
OF_CLAIMS: tuple[FigureKind, ...] = (FigureKind("readings", readings),)
"""Figures shown last, since claims are judged at the end of a report."""


def figure_kinds(studies: Sequence[Study[Any]]) -> list[FigureKind]:
    """Return every kind of figure in the order of a report: first those of studies that precede the results."""
    leading, others = ([kind for s in studies if s.leads == leads for kind in s.figures] for leads in (True, False))
    return [*leading, *FIGURES, *others, *OF_WEIGHTS, *OF_CLAIMS]


def figures(results: Sequence[Results], studies: Sequence[Study[Any]]) -> list[Figure]:
    """Return every figure that the data allow, in a fixed order; figures on an experiment combine all runs.

    Raises:
        StoreError: a table of a run is unreadable.
    """
    found = [figure for kind in figure_kinds(studies) for figure in kind.make(results)]
    names = [figure.name for figure in found]
    assert len(set(names)) == len(names), names
    return found


__all__ = ["FILE_FORMATS", "Figure", "FigureKind", "FileFormat", "Panel", "figure_kinds", "figures", "save", "to_svg"]
