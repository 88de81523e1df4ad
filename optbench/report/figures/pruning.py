"""Accuracy against the fraction of weights kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.report.figures import style
from optbench.report.figures.curves import Curve, Curves, lines, mean_curve
from optbench.report.figures.curves import draw as draw_curves
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, chunks, groups
from optbench.report.figures.wording import group_figure, means
from optbench.stats.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.2, 3.1
SCOPES = {"global": "the largest of all weights", "layer": "the largest of each layer"}


def pruning(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment and model, with one panel per scope."""
    read = {result.run.path: read_curves(result) for result in results}
    figures = []
    for group in groups(results):
        found = {scope: [s for s in group.shown if lines(s, scope, read)] for scope in _scopes(read)}
        if drawn := {scope: shown for scope, shown in found.items() if shown}:
            figures.append(_figure(group, drawn, read))
    return figures


def read_curves(results: Results) -> Curves[str]:
    """Read the pruning curves after the last task, by trial and scope; omit points with no weights or no accuracy."""
    found: dict[tuple[str, str], Curve] = {}
    for key, curve in results.pruning.items():
        points = [(keep, accuracy) for keep, accuracy in curve.tolist() if math.isfinite(accuracy) and keep > 0]
        if points:
            found[key] = tuple(points)
    return found


def _scopes(read: Mapping[Path, Curves[str]]) -> list[str]:
    present = {scope for known in read.values() for _, scope in known}
    return sorted(present, key=lambda scope: (list(SCOPES).index(scope) if scope in SCOPES else len(SCOPES), scope))


def _figure(group: Group, drawn: Mapping[str, Sequence[Series]], read: Mapping[Path, Curves[str]]) -> Figure:
    scope, shown = next(iter(drawn.items()))
    middle = {series.label: mean_curve(lines(series, scope, read)) for series in shown}
    # At the fraction nearest to a tenth, solutions differ but are not yet far below their accuracy without pruning.
    near = min(
        (keep for line in middle.values() for keep, _ in line), key=lambda k: abs(math.log(k / 0.1)), default=1.0
    )
    numbers = [(label, dict(line)[near]) for label, line in middle.items() if near in dict(line)]
    what = (
        f"Test accuracy at the end of {group.experiment}, {group.model}, over all tasks, with only the largest weights "
        "kept and no further training; a thin line is a seed, and a thick line is the mean."
    )
    alt = f"Mean accuracy with {100 * near:.3g}% of the weights kept ({SCOPES.get(scope, scope)}): {means(numbers)}."
    panels = [_panel(scope, part, read) for scope, shown in drawn.items() for part in chunks(shown)]
    return group_figure(group, "pruning", "pruning", what, alt, panels)


def _panel(scope: str, part: Sequence[Series], read: Mapping[Path, Curves[str]]) -> Panel:
    def draw(axes: Axes) -> None:
        style.log_axis(axes, "x")
        draw_curves(axes, part, scope, read)
        style.labels(axes, "share of the weights kept", "accuracy at the end")

    return Panel(draw, WIDTH, HEIGHT, SCOPES.get(scope, scope), part)
