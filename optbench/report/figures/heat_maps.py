"""Heat maps of means over seeds, with one panel per optimizer: cosines between classes, and accuracy matrices.

The figures of cosines correspond to Figure 4 (right) of Pascanu et al. 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optbench.report.figures import style
from optbench.report.figures.columns import final_rows
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, groups
from optbench.report.figures.tasks import TaskNames, task_names, task_ticks
from optbench.report.figures.wording import accuracy, group_figure, means, score_of
from optbench.stats.results import Results
from optbench.store.columns import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = NDArray[np.float64]

MAX_WIDTH, MIN_WIDTH = 4.2, 2.4
CELL = 0.3
"""Size of a cell in inches, enough for a two-digit number."""


@dataclass(frozen=True)
class HeatMap:
    """A matrix to draw as a heat map.

    values: the matrix, (rows, columns); NaN where missing.
    low, high: the values at the ends of the colour scale.
    """

    values: Matrix
    low: float
    high: float
    rows: TaskNames
    columns: TaskNames


def class_cosine(results: Sequence[Results]) -> list[Figure]:
    """Return one figure of cosines between classes per experiment and model."""
    read = {result.run.path: cosines(result) for result in results}
    return [_cosine_figure(*drawn) for drawn in _drawn(results, lambda found: read[found.run.path])]


def accuracy_matrix(results: Sequence[Results]) -> list[Figure]:
    """Return one figure of accuracy matrices per experiment and model.

    A matrix with missing scores is left out if every task was scored only right before or right after training on it.
    """
    return [_accuracy_figure(*drawn) for drawn in _drawn(results, _matrices)]


def _matrices(found: Results) -> dict[str, Matrix]:
    return {trial: matrix for trial, matrix in found.matrices.items() if _is_more_than_two_diagonals(matrix)}


def _is_more_than_two_diagonals(matrix: Matrix) -> bool:
    row, column = np.indices(matrix.shape)
    further = (column != row) & (column != row - 1)
    return bool(np.isfinite(matrix[further]).any() or np.isfinite(matrix).all())


def _drawn(
    results: Sequence[Results], matrices: Callable[[Results], Mapping[str, Matrix]]
) -> Iterator[tuple[Group, list[tuple[Series, Matrix]]]]:
    """Yield each group with its series and their mean matrices; omit empty groups and series without a matrix."""
    for group in groups(results):
        found = [(series, _mean(series, matrices(series.arm.results))) for series in group.shown]
        if drawn := [(series, values) for series, values in found if values is not None]:
            yield group, drawn


def cosines(results: Results) -> dict[str, Matrix]:
    """Return the cosines between the mean features of all C classes after the last task, (C, C), by trial."""
    table = results.run.table("similarity", "trial", "after_task", "layer", "class_a", "class_b", "cosine")
    columns = (numbers(table[name]) for name in ("class_a", "class_b", "cosine"))
    found = {}
    for trial, rows in final_rows(results, table, *columns).items():
        a, b = rows[:, :2].T.astype(np.int64)
        classes = 1 + int(max(a.max(), b.max()))
        found[trial] = np.full((classes, classes), np.nan)
        found[trial][a, b] = rows[:, 2]
    return found


def _mean(series: Series, matrices: Mapping[str, Matrix]) -> Matrix | None:
    """Return the mean of each entry over the seeds on which it is defined; NaN if it is defined on none.

    Return None if no entry is defined on any seed, or if the matrices differ in shape.
    """
    found = [matrices[trial.id] for trial in series.trials if trial.id in matrices]
    if not found or any(matrix.shape != found[0].shape for matrix in found):
        return None
    stacked = np.stack(found)
    defined = np.isfinite(stacked)
    counts = defined.sum(axis=0)
    total = np.where(defined, stacked, 0.0).sum(axis=0)
    values: Matrix = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return values if counts.any() else None


def _cosine_figure(group: Group, drawn: Sequence[tuple[Series, Matrix]]) -> Figure:
    # The scale begins at a multiple of .1, so that two reports of an experiment usually have the same colours.
    low = math.floor(10 * min(float(np.nanmin(values)) for _, values in drawn)) / 10
    panels = []
    for series, values in drawn:
        names = TaskNames(tuple(str(i) for i in range(len(values))), "class")
        panels.append(draw_heat_map(series.label, HeatMap(values, min(low, 0.9), 1.0, names, names)))
    apart = [(series.label, _off_diagonal(values)) for series, values in drawn]
    what = (
        f"Cosine between the mean features of each pair of classes at the end of {group.experiment}, {group.model}; "
        f"mean over seeds; the colours go from {min(low, 0.9):g} (dark) to 1 (light) in every panel."
    )
    alt = f"Mean cosine between the features of different classes: {means(apart)}."
    return group_figure(group, "class-cosine", "similarity of classes", what, alt, panels)


def _accuracy_figure(group: Group, drawn: Sequence[tuple[Series, Matrix]]) -> Figure:
    panels, score = [], score_of(series for series, _ in drawn)
    text = any(series.arm.in_bits for series, _ in drawn)
    low, high = _ends([values for _, values in drawn]) if text else (0.0, 1.0)
    for series, values in drawn:
        tasks = values.shape[1]
        columns = task_names(series.arm.tasks, tasks)
        rows = TaskNames(("none", *columns.names), "after training on")
        title = f"{score} on " + columns.title.split(" ")[0].rstrip(",")
        panels.append(draw_heat_map(series.label, HeatMap(values, low, high, rows, TaskNames(columns.names, title))))
    end = [(series.label, float(np.nanmean(values[-1]))) for series, values in drawn if np.isfinite(values[-1]).any()]
    scored = all(np.isfinite(values[-1]).all() for _, values in drawn)
    what = (
        f"{accuracy(series for series, _ in drawn)} on every task of {group.experiment} (columns) before any training "
        f"and after each task (rows), {group.model}; mean over seeds; the colours go from {low:g} (dark) to {high:g} "
        "(light)."
    )
    alt = f"Mean of the last row, the {score} at the end over all{'' if scored else ' scored'} tasks: {means(end)}."
    return group_figure(group, "accuracy-matrix", f"{score} after each task", what, alt, panels)


def _ends(drawn: Sequence[Matrix]) -> tuple[float, float]:
    """Return the lowest finite value, rounded down to a whole number, and the highest, rounded up."""
    every = np.concatenate([values[np.isfinite(values)] for values in drawn])
    return math.floor(every.min()), math.ceil(every.max())


def _off_diagonal(values: Matrix) -> float:
    others = values[~np.eye(len(values), dtype=bool)]
    others = others[np.isfinite(others)]
    return float(others.mean()) if len(others) else math.nan


def draw_heat_map(label: str, heat_map: HeatMap) -> Panel:
    rows, columns = heat_map.values.shape
    margin = 0.35 + 0.085 * max(map(len, heat_map.rows.names))
    width = min(max(margin + 0.15 + CELL * columns, MIN_WIDTH, 0.4 + 0.085 * len(label)), MAX_WIDTH)
    numbers = (width - margin - 0.15) / columns > 0.9 * CELL
    # Cells are square, or flat if there are few columns.
    beside = 0.0 if numbers else 0.55
    inner = width - margin - 0.15 - beside
    height = 0.85 + inner * rows / columns if numbers is False or columns > 6 else 0.85 + CELL * rows

    def draw(axes: Axes) -> None:
        _cells(axes, heat_map, numbers=numbers)
        task_ticks(axes, "x", heat_map.columns, inner)
        task_ticks(axes, "y", heat_map.rows, 4 * (height - 0.85))
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
        style.labels(axes, heat_map.columns.title, heat_map.rows.title)

    return Panel(draw, width, height, label, scales="", beside=beside)


def _cells(axes: Axes, heat_map: HeatMap, *, numbers: bool) -> None:
    import matplotlib
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import Normalize

    from optbench.report.figures.texts import Label, Labels

    scale, colours = Normalize(heat_map.low, heat_map.high), matplotlib.colormaps[style.COLOURS]
    defined = np.isfinite(heat_map.values)
    values, places = heat_map.values[defined], np.argwhere(defined)
    corners = 0.48 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    # Squares are slightly separated because the seams of touching cells would show the page behind them.
    cells = PolyCollection(list(places[:, None, ::-1] + corners))
    cells.set(array=values, cmap=colours, norm=scale, linewidth=0)
    axes.add_collection(cells)
    if not numbers:
        axes.figure.colorbar(cells, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)))
        return
    bright = colours(scale(values))[:, :3] @ [0.299, 0.587, 0.114] > 0.5
    written = [
        Label(column, row, two_digits(value), 8, colour=style.ON_LIGHT if light else style.ON_DARK)
        for (row, column), value, light in zip(places.tolist(), values.tolist(), bright, strict=True)
    ]
    written += [Label(column, row, "–", 8) for row, column in np.argwhere(~defined).tolist()]
    axes.add_artist(Labels(written, axes.transData))


def two_digits(value: float) -> str:
    """Format a number for a narrow cell, e.g. `.93`, `-.12` or `1.0`."""
    text = f"{value:.2f}"
    if text.startswith(("0.", "-0.")):
        return "0" if float(text) == 0 else text.replace("0.", ".", 1)
    return text[:-1] if text.endswith("0") else text
