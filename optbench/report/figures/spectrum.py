"""The spectrum of the feature covariance at the end, as in Figure 3 (right) of Pascanu et al. 2025."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from optbench.report.figures import style
from optbench.report.figures.columns import final_rows
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, by_experiment, chunks, figure_name, groups
from optbench.report.figures.wording import caption, means
from optbench.stats.results import Results
from optbench.store.columns import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.2, 3.1
FLOOR = 1e-8
"""Smallest fraction of the sum of eigenvalues that is drawn; smaller ones are rounding errors and would take up most of
the axis."""

Spectra = Mapping[str, NDArray[np.float64]]
"""Spectra by trial, each (d,): eigenvalues as fractions of their sum, largest first."""


def spectrum(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment, with one panel per model, or several if there are many optimizers."""
    read = {result.run.path: spectra(result) for result in results}
    figures = []
    for experiment, found in by_experiment(groups(results)).items():
        drawn = [(group, [s for s in group.shown if _lines(s, read)]) for group in found]
        drawn = [(group, shown) for group, shown in drawn if shown]
        if drawn:
            figures.append(_figure(experiment, drawn, read))
    return figures


def spectra(results: Results) -> Spectra:
    """Read each trial's spectrum after the last task, with all tasks pooled; omit undefined and all-zero spectra."""
    table = results.run.table("spectra", "trial", "after_task", "task", "layer", "index", "eigenvalue")
    table = table.filter(pc.is_null(table["task"]))
    columns = (numbers(table[name]) for name in ("index", "eigenvalue"))
    found = {}
    for trial, rows in final_rows(results, table, *columns).items():
        values = rows[np.argsort(rows[:, 0], kind="stable"), 1]
        if np.isfinite(values).all() and values.sum() > 0:
            found[trial] = values / values.sum()
    return found


def _lines(series: Series, read: Mapping[Path, Spectra]) -> list[NDArray[np.float64]]:
    known = read[series.arm.results.run.path]
    return [known[trial.id] for trial in series.trials if trial.id in known]


def _figure(experiment: str, drawn: Sequence[tuple[Group, Sequence[Series]]], read: Mapping[Path, Spectra]) -> Figure:
    several = len(drawn) > 1
    numbers = [
        (f"{s.label} at {group.model}" if several else s.label, 100 * float(np.median([x[0] for x in _lines(s, read)])))
        for group, shown in drawn
        for s in shown
    ]
    what = (
        f"Eigenvalues of the covariance of the features at the end of {experiment}, all tasks pooled, each divided by "
        "their sum; a thin line is a seed, and a thick line is the median."
    )
    return Figure(
        name=figure_name("spectrum", experiment),
        title=f"{experiment}: spectrum of the representation",
        caption=caption(what, [(group, group.shown) for group, _ in drawn]),
        alt=f"Share of the variance along the first direction, in percent, median over seeds: {means(numbers, 1)}.",
        panels=tuple(_panel(group.model, part, read) for group, shown in drawn for part in chunks(shown)),
    )


def _panel(model: str, part: Sequence[Series], read: Mapping[Path, Spectra]) -> Panel:
    def draw(axes: Axes) -> None:
        style.log_axis(axes, "y")
        lowest = 1.0
        for series in part:
            shown = style.look(series)
            lines = _lines(series, read)
            curves = [np.column_stack([np.arange(1, len(line) + 1), _visible(line)]) for line in lines]
            style.draw_curves(axes, curves, shown)
            shortest = min(map(len, lines))
            median = _visible(np.median([line[:shortest] for line in lines], axis=0))
            style.draw_line(axes, np.arange(1, shortest + 1), median, shown, label="_median", markers=8)
            lowest = min(lowest, float(np.nanmin(median)))
        # A seed with a very small value must not compress all others.
        axes.set_ylim(bottom=max(FLOOR, lowest / 5))
        style.labels(axes, "index of the eigenvalue", "share of the variance")

    return Panel(draw, WIDTH, HEIGHT, model, part)


def _visible(line: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(line > FLOOR, line, np.nan)
