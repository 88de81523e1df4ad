"""The figures of a report. A new one is a file here and a line in `FIGURES`.

matplotlib is imported where something is drawn, not before: `figures` decides what can be drawn, and says it in
words, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.final_accuracy import final_accuracy
from optbench.report.figures.heat_maps import accuracy_matrix, class_cosine
from optbench.report.figures.pruning import pruning
from optbench.report.figures.rendering import FORMATS, FileFormat, save, to_svg
from optbench.report.figures.spectrum import spectrum
from optbench.report.figures.task_accuracy import task_accuracy
from optbench.report.figures.weight_magnitudes import weight_magnitudes
from optbench.stats.results import Results
from optbench.studies.switching.figures import switching
from optbench.studies.tuning.figures import learning_rates, settings
from optbench.studies.twins.figures import twins


@dataclass(frozen=True)
class Kind:
    """A kind of figure. make: those that the data of some runs allow; none is no error."""

    name: str
    make: Callable[[Sequence[Results]], list[Figure]]


FIGURES: tuple[Kind, ...] = (
    Kind("final-accuracy", final_accuracy),
    Kind("spectrum", spectrum),
    Kind("task-accuracy", task_accuracy),
    Kind("class-cosine", class_cosine),
    Kind("accuracy-matrix", accuracy_matrix),
    Kind("sweep", learning_rates),
    Kind("setting", settings),
    Kind("switch", switching),
    Kind("twins", twins),
    Kind("pruning", pruning),
    Kind("weight-magnitudes", weight_magnitudes),
)
"""In the order of a report."""


def figures(results: Sequence[Results]) -> list[Figure]:
    """Every figure that the data allow, in a fixed order; several runs are drawn side by side.

    Raises:
        StoreError: a table of a run is unreadable.
    """
    found = [figure for kind in FIGURES for figure in kind.make(results)]
    names = [figure.name for figure in found]
    assert len(set(names)) == len(names), names
    return found


__all__ = ["FIGURES", "FORMATS", "Figure", "FileFormat", "Kind", "Panel", "figures", "save", "to_svg"]
