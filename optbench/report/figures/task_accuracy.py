"""Accuracy on each task at the end, as in Figure 4 (left) of Pascanu et al. 2025."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optbench.report.figures import style
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, chunks, groups, spread_out
from optbench.report.figures.tasks import task_names, task_ticks
from optbench.report.figures.wording import accuracy, group_figure, means, score_of
from optbench.stats.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.6, 3.1


def task_accuracy(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment and model, with a dot per seed for the final accuracy R[T, j] on each task j."""
    return [figure for group in groups(results) if (figure := _figure(group)) is not None]


def _ends(series: Series) -> list[NDArray[np.float64]]:
    """Return the last row of each trial's accuracy matrix, except incomplete rows."""
    matrices = series.arm.results.matrices
    rows = [matrices[trial.id][-1] for trial in series.trials if trial.id in matrices]
    return [row for row in rows if np.isfinite(row).all()]


def _figure(group: Group) -> Figure | None:
    shown = [series for series in group.shown if _ends(series)]
    if not shown:
        return None
    first, last = (
        [(series.label, float(np.mean([row[task] for row in _ends(series)]))) for series in shown] for task in (0, -1)
    )
    limits = style.limits([float(value) for series in shown for row in _ends(series) for value in row])
    what = (
        f"{accuracy(shown)} on each task of {group.experiment} after training on the last one, {group.model}; a dot is "
        "a seed, and a line goes through the means."
    )
    score = score_of(shown)
    alt = f"Mean {score} at the end on the first task: {means(first)}; on the last: {means(last)}."
    panels = [_panel(part, limits) for part in chunks(shown)]
    return group_figure(group, "task-accuracy", f"{score} per task at the end", what, alt, panels)


def _panel(part: Sequence[Series], limits: tuple[float, float]) -> Panel:
    tasks = max(len(row) for series in part for row in _ends(series))
    names = task_names(part[0].arm.tasks, tasks)
    step = 0.8 / len(part)

    def draw(axes: Axes) -> None:
        for i, series in enumerate(part):
            rows, shown = _ends(series), style.look(series)
            places = np.arange(len(rows[0])) + (i - (len(part) - 1) / 2) * step
            style.draw_means(axes, places.tolist(), np.mean(rows, axis=0).tolist(), shown)
            x = np.add.outer(spread_out(len(rows), 0.6 * step), places)
            style.draw_seeds(axes, x.ravel().tolist(), np.ravel(rows).tolist(), shown)
        axes.set_xlim(-0.5, tasks - 0.5)
        axes.set_ylim(limits)
        task_ticks(axes, "x", names, WIDTH - 0.7)
        style.labels(axes, names.title, f"{score_of(part)} at the end")

    return Panel(draw, WIDTH, HEIGHT, series=part, scales="y")
