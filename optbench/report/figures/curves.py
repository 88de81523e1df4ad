"""Curves of trials: each seed as a thin line, and the mean as a thick line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from optbench.report.figures import style
from optbench.report.figures.series import Series, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[tuple[float, float], ...]
"""Points (x, y), by ascending x."""
Of = TypeVar("Of", str, int)
Curves = Mapping[tuple[str, Of], Curve]
"""Curves of a run, by trial and subject (a pruning scope or a task)."""


def lines(series: Series, of: Of, read: Mapping[Path, Curves[Of]]) -> list[Curve]:
    """Return the curves of a series, one for each seed that has a curve.

    read: the curves of each run, by the path of the run.
    """
    known = read[series.arm.results.run.path]
    return [known[trial.id, of] for trial in series.trials if known.get((trial.id, of))]


def mean_curve(found: Sequence[Curve]) -> Curve:
    """Return the mean of the curves at every x that all of them share."""
    shared = set.intersection(*({x for x, _ in line} for line in found))
    return tuple((x, mean([dict(line)[x] for line in found])) for x in sorted(shared))


def draw(axes: Axes, part: Sequence[Series], of: Of, read: Mapping[Path, Curves[Of]]) -> None:
    """Draw the curves of several series and the mean of each series."""
    for series in part:
        shown, found = style.look(series), lines(series, of, read)
        style.draw_curves(axes, found, shown)
        if found and (middle := mean_curve(found)):
            x, y = zip(*middle, strict=True)
            style.draw_line(axes, x, y, shown, label="_mean")
