"""Average accuracy at the end by optimizer and model, as in Figure 3 (left) of Pascanu et al. 2025."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optbench.report.figures import style
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, by_experiment, chunks, figure_name, groups, mean, spread_out
from optbench.report.figures.wording import accuracy, caption, means, score_of
from optbench.stats.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC = "average_accuracy"
WIDTH, HEIGHT = 4.6, 3.1
MEAN: dict[str, Any] = {"color": style.INK, "linewidth": 1.8, "label": "_means"}
MAX_ROWS = 12
"""Maximum number of rows in a panel. Each row is named, so colours need not distinguish the rows."""


def final_accuracy(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment, with every seed as a dot."""
    return [
        figure
        for experiment, found in by_experiment(groups(results)).items()
        if (figure := _figure(experiment, [group for group in found if _shown(group)])) is not None
    ]


def _shown(group: Group) -> list[Series]:
    return [series for series in group.shown if series.values(METRIC)]


def _figure(experiment: str, found: Sequence[Group]) -> Figure | None:
    if not found:
        return None
    drawn = [(group, _shown(group)) for group in found]
    limits = style.limits([value for _, shown in drawn for series in shown for value in series.values(METRIC)])
    if len(found) == 1:
        panels = tuple(_rows(part, limits) for part in chunks(drawn[0][1], MAX_ROWS))
    else:
        labels = list(dict.fromkeys(series.label for _, shown in drawn for series in shown))
        by_label = {series.label: series for _, shown in drawn for series in shown}
        panels = tuple(_columns(drawn, part, limits) for part in chunks([by_label[label] for label in labels]))
    numbers = [
        (series.label if len(found) == 1 else f"{series.label} at {group.model}", mean(series.values(METRIC)))
        for group, shown in drawn
        for series in shown
    ]
    everything = [series for _, shown in drawn for series in shown]
    what = (
        f"{accuracy(everything)} at the end of {experiment}, mean over all tasks, by optimizer"
        f"{'' if len(found) == 1 else ' and model'}; a dot is a seed, and a bar is the mean."
    )
    return Figure(
        name=figure_name("final-accuracy", experiment),
        title=f"{experiment}: final {score_of(everything)}",
        caption=caption(what, [(group, group.shown) for group in found]),
        alt=f"Mean {score_of(everything)} at the end of {experiment}: {means(numbers)}.",
        panels=panels,
    )


def _axis(shown: Sequence[Series]) -> str:
    return f"average {score_of(shown)} at the end"


def _rows(part: Sequence[Series], limits: tuple[float, float]) -> Panel:
    """Return a panel for one model, with a named row for each series."""

    def draw(axes: Axes) -> None:
        for row, series in enumerate(part):
            values = series.values(METRIC)
            style.draw_seeds(axes, values, [row + dy for dy in spread_out(len(values), 0.4)], style.look(series))
        middles, rows = [mean(series.values(METRIC)) for series in part], np.arange(len(part))
        axes.vlines(middles, rows - 0.32, rows + 0.32, **MEAN)
        style.name_ticks(axes, "y", [textwrap.fill(series.label, 26) for series in part])
        axes.set_xlim(limits)
        axes.set_ylim(len(part) - 0.5, -0.5)
        axes.set_xlabel(_axis(part))

    return Panel(draw, WIDTH, 0.7 + 0.3 * len(part), scales="x")


def _columns(
    drawn: Sequence[tuple[Group, Sequence[Series]]], part: Sequence[Series], limits: tuple[float, float]
) -> Panel:
    """Return a panel for several models: one column per model, in which the optimizers are side by side."""
    models = [group.model for group, _ in drawn]
    step = 0.8 / len(part)
    order = {series.label: i for i, series in enumerate(part)}

    def draw(axes: Axes) -> None:
        middles, places = [], []
        for x, (_, shown) in enumerate(drawn):
            for series in shown:
                if series.label not in order:
                    continue
                values = series.values(METRIC)
                place = x + (order[series.label] - (len(part) - 1) / 2) * step
                offsets = spread_out(len(values), 0.5 * step)
                style.draw_seeds(axes, [place + dx for dx in offsets], values, style.look(series))
                middles.append(mean(values))
                places.append(place)
        axes.hlines(middles, np.array(places) - 0.42 * step, np.array(places) + 0.42 * step, **MEAN)
        style.name_ticks(axes, "x", models)
        axes.set_xlim(-0.5, len(models) - 0.5)
        axes.set_ylim(limits)
        axes.set_ylabel(_axis(part))

    return Panel(draw, WIDTH, HEIGHT, series=part, lines=False, scales="y")
