"""Figures that show metrics of switched optimizers' solutions against k, the step of the switch."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optbench.counting import grouped
from optbench.report.figures import style
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, groups, mean
from optbench.report.figures.wording import caption, means, metric_words
from optbench.report.numbers import decimals
from optbench.stats.arms import Arm
from optbench.stats.results import Results
from optbench.studies.switching.statistics import Switching, switchings
from optbench.studies.switching.tables import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_POINTS = 2
WIDTH, HEIGHT = 3.4, 2.7
TICKS = 6
BAND = 0.12
"""Opacity of a pure arm's band."""


@dataclass(frozen=True)
class Level:
    """A pure arm, drawn as a horizontal line with a marker.

    end: the k at which the marker is drawn: 0 for B, the total number of steps for A.
    """

    end: float
    series: Series


@dataclass(frozen=True)
class Path:
    """One drawn `Switching`.

    series: the look of its line.
    points: pairs of k (capped at the number of steps taken) and arm, by ascending k.
    levels: the pure arms that are not missing.
    """

    switching: Switching
    series: Series
    points: tuple[tuple[float, Series], ...]
    levels: tuple[Level, ...]

    def drawn(self, metric: str) -> list[tuple[float, list[float]]]:
        """Return each k at which the metric was measured, with the metric's values over seeds."""
        return [(k, found) for k, arm in self.points if (found := arm.values(metric))]

    @property
    def metrics(self) -> list[str]:
        """Metrics with enough values of k for a line."""
        return [metric for metric in self.switching.metrics if len(self.drawn(metric)) >= MIN_POINTS]


def switching(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per switch, with a panel for each primary metric and run."""
    by_place = {(group.experiment, group.model): group for group in groups(results)}
    paths = (_path(found, by_place[found.place]) for result in results for found in switchings(result))
    alike = grouped(((*p.switching.place, p.switching.label, heading(p.switching)), p) for p in paths if p.metrics)
    figures: list[Figure] = []
    for same in alike.values():
        figures.append(_figure(same, {figure.name for figure in figures}))
    return figures


def _path(found: Switching, group: Group) -> Path:
    known = {series.arm.key: series for series in group.series}
    arms = [known[point.arm.key] for point in found.points]
    run = arms[0].label.removeprefix(arms[0].arm.label)
    taken = max((one.arm.results.rows[trial.id].steps for one in arms for trial in one.trials), default=0)
    points = tuple((min(point.k, taken), arm) for point, arm in zip(found.points, arms, strict=True))
    look = replace(arms[0], label=f"{found.label}{run}", turn=0)
    levels: list[Level] = []
    ends: list[tuple[float, Arm | None, str]] = [(0, found.pure_then, found.then)]
    if found.kind == "switch":
        ends.insert(0, (taken, found.pure_first, found.first))
    for end, arm, name in ends:
        if arm is not None:
            # An end of the sweep that replaces a missing pure arm has the same colour as the sweep.
            turn = sum(known[arm.key].colour == other.colour for other in (look, *(level.series for level in levels)))
            levels.append(Level(end, replace(known[arm.key], label=f"{name} alone{run}", turn=turn)))
    return Path(found, look, points, tuple(levels))


def _figure(paths: Sequence[Path], used: Set[str]) -> Figure:
    first = paths[0]
    (experiment, model), told = first.switching.place, heading(first.switching)
    arms = [arm for path in paths for arm in (*(arm for _, arm in path.points), *_pure(path))]
    shown = tuple({arm.arm.key: arm for arm in arms}.values())
    group = Group(experiment, model, shown)
    what = f"The solution of {experiment}, {model} against k: {told}; a dot is a seed, and a line joins the means."
    if names := [one.label for path in paths for one in _pure(path)]:
        what += f" Horizontal lines: {', '.join(names)}; means with a band of one standard deviation on either side."
    metric = first.metrics[0]
    numbers = []
    for path in paths:
        run = path.series.label.removeprefix(path.switching.label)
        numbers += [(f"k = {style.short(k)}{run}", mean(values)) for k, values in path.drawn(metric)]
        numbers += [(one.label, mean(one.values(metric))) for one in _pure(path)]
    return Figure(
        name=_unused(group, first.switching.optimizer, used),
        title=f"{experiment}, {model}: {told}",
        caption=caption(what, [(group, shown)]),
        alt=f"Mean {metric_words(shown, metric)} by k: {means(numbers, decimals(metric))}.",
        panels=tuple(_panel(path, metric) for path in paths for metric in path.metrics),
    )


def _unused(group: Group, optimizer: str, used: Set[str]) -> str:
    """Return the first unused name among `switch_..._<optimizer>`, `switch_..._<optimizer>_2`, ..."""
    numbered = (() if number == 1 else (str(number),) for number in itertools.count(1))
    names = (group.figure_name("switch", optimizer, *number) for number in numbered)
    return next(name for name in names if name not in used)


def _pure(path: Path) -> list[Series]:
    return [level.series for level in path.levels]


def _panel(path: Path, metric: str) -> Panel:
    levels = [level for level in path.levels if level.series.values(metric)]
    series = (path.series, *(level.series for level in levels))

    def draw(axes: Axes) -> None:
        drawn, shown = path.drawn(metric), style.look(path.series)
        style.value_axis(axes, "x", sorted({k for k, _ in drawn} | {level.end for level in levels}), room=TICKS)
        for level in levels:
            _horizontal(axes, level.series.values(metric), style.look(level.series), level.end)
        style.draw_means(axes, [k for k, _ in drawn], [mean(values) for _, values in drawn], shown)
        x = [k for k, values in drawn for _ in values]
        style.draw_seeds(axes, x, [one for _, values in drawn for one in values], shown)
        what = "noise" if path.switching.kind == "noise" else path.switching.first
        style.labels(axes, f"k, steps with {what}", metric_words(series, metric))

    return Panel(draw, WIDTH, HEIGHT, series=series)


def _horizontal(axes: Axes, values: Sequence[float], shown: style.Look, end: float) -> None:
    """Draw a pure arm: its mean as a line with a marker at `end`, its standard deviation as a band."""
    middle = mean(values)
    axes.axhline(middle, color=shown.colour, linestyle=shown.line, linewidth=1.0, label="_pure")
    if len(values) > 1:
        sd = statistics.stdev(values)
        axes.axhspan(middle - sd, middle + sd, color=shown.colour, alpha=BAND, linewidth=0, label="_band")
    axes.plot([end], [middle], linestyle="none", **{**shown.marks, "markersize": 6.5}, label="_end")
