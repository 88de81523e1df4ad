"""Figures of online accuracy over tasks, with panels underneath for the networks' state before each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from optbench.report.figures import style
from optbench.report.figures.drawing import MAX_WIDTH, Figure, Panel
from optbench.report.figures.placing import Ending, name_ends
from optbench.report.figures.series import Group, Series, chunks, groups, mean
from optbench.report.figures.wording import caption, means
from optbench.stats.arms import Arm
from optbench.stats.results import Results
from optbench.store.online import ACCURACY
from optbench.studies.plasticity.statistics import Array, LearntOnline, learnt_online

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT, UNDER, NAMES = 3.4, 1.05, 0.35
"""Heights in inches: the accuracy axes, each of the axes below them, and the space under the last axes."""
BESIDE = 1.25
"""Width of the space for the lines' names, in inches."""
PARTS = {"dead": "dead units", "dormant": "dormant units", "effective_rank": "effective rank"}
BAND, MUTED = 0.14, 0.5
"""Opacity of a spread, and of muted lines."""


@dataclass(frozen=True)
class _Line:
    """One drawn arm."""

    learnt: LearntOnline
    series: Series

    @property
    def muted(self) -> bool:
        """Whether the arm is a wrapper, such as a remedy or fresh networks. Every panel shows wrappers, in grey."""
        return self.learnt.is_control

    def smooth(self, column: str) -> Array:
        """Return each seed's means of a column over every w consecutive tasks, (S, T - w + 1)."""
        found: Array = sliding_window_view(self.learnt.recorded[column], self.learnt.window, axis=1).mean(axis=-1)
        return found

    @property
    def tasks(self) -> Array:
        """The task at the centre of each window, (T - w + 1,)."""
        return np.arange(self.learnt.tasks - self.learnt.window + 1, dtype=np.float64) + (self.learnt.window + 1) / 2


def plasticity(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment and model with recorded online accuracies."""
    found = {_key(one.arm): one for result in results for one in learnt_online(result)}
    figures = []
    for group in groups(results) if found else ():
        lines = [_Line(found[key], series) for series in group.shown if (key := _key(series.arm)) in found]
        if lines := [line for line in lines if len(line.learnt.recorded[ACCURACY])]:
            figures.append(_figure(group, lines))
    return figures


def _figure(group: Group, lines: Sequence[_Line]) -> Figure:
    longest = max((line.learnt for line in lines), key=lambda learnt: learnt.window)
    muted = [line for line in lines if line.muted]
    by_label = {line.series.label: line for line in lines}
    # muted lines are in every panel
    parts = [[by_label[s.label] for s in part] for part in chunks([line.series for line in lines if not line.muted])]
    smoothed = f"means over {longest.window} consecutive tasks; " if longest.window > 1 else ""
    what = (
        f"Online accuracy over the tasks of {group.experiment}, {group.model}, on each batch before its update: "
        f"{smoothed}a line is the mean over seeds, a band one standard deviation on either side."
    )
    if fresh := [line.series.label for line in muted if line.learnt.is_fresh]:
        what += f" Dashed ({', '.join(fresh)}): fresh networks for every task, which have not learnt earlier tasks."
    if others := [line.series.label for line in muted if not line.learnt.is_fresh]:
        what += f" Dotted: {', '.join(others)}, wrappers around an optimizer."
    drawn = [title for column, title in PARTS.items() if _shows(lines, column)]
    if drawn:
        what += f" Below, measured before the first update on each task: {', '.join(drawn)}."
    late = [(line.series.label, mean(line.learnt.late)) for line in lines]
    return Figure(
        name=group.figure_name("plasticity"),
        title=f"{group.experiment}, {group.model}: plasticity",
        caption=caption(what, [(group, [line.series for line in lines])]),
        alt=f"Mean online accuracy on the last {longest.in_window}: {means(late)}.",
        panels=tuple(_panel([*part, *muted], lines) for part in parts or [[]]),
    )


def _panel(part: Sequence[_Line], lines: Sequence[_Line]) -> Panel:
    shown = [column for column in PARTS if _shows(lines, column)]
    under = []
    for column in shown:
        last = column == shown[-1]
        draw = _drawing(part, lines, column, PARTS[column], last=last)
        under.append(Panel(draw, MAX_WIDTH, UNDER + NAMES * last, beside=BESIDE))
    draw = _drawing(part, lines, ACCURACY, "online accuracy", last=not under)
    return Panel(draw, MAX_WIDTH, HEIGHT, beside=BESIDE, below=tuple(under))


def _drawing(
    part: Sequence[_Line], lines: Sequence[_Line], column: str, name: str, *, last: bool
) -> Callable[[Axes], None]:
    """Return the function that draws one column of the table `online`.

    part: the lines to draw. lines: the lines of all panels, whose axes share the same limits.
    name: label of the y axis. last: whether to label the x axis.
    """

    def draw(axes: Axes) -> None:
        limits = style.limits([float(end) for line in lines for end in _ends(line, column)])
        ends = []
        for line in part:
            middle, spread = _centre(line, column)
            colour, shape, alpha = _look(line)
            if not line.muted and len(line.smooth(column)) > 1:
                low, high = middle - spread, middle + spread
                axes.fill_between(line.tasks, low, high, color=colour, alpha=BAND, linewidth=0, label="_spread")
            width = 1.1 if line.muted else 1.7
            axes.plot(line.tasks, middle, color=colour, linestyle=shape, alpha=alpha, linewidth=width, label="_mean")
            if np.isfinite(middle[-1]):
                place = (float(line.tasks[-1]), float(middle[-1]))
                ends.append(Ending(line.series.label, place, colour, alpha))
        tasks = max(line.learnt.tasks for line in lines)
        axes.set_xlim(min(1.0, tasks - 1.0), tasks)
        axes.set_ylim(limits)
        style.labels(axes, "task" if last else "", name)
        if not last:
            style.no_names(axes, "x")
        if column == ACCURACY:
            name_ends(axes, ends, limits, 72 * HEIGHT, 72 * BESIDE)

    return draw


def _look(line: _Line) -> tuple[str, style.Line, float]:
    """Return a line's colour, style and opacity; muted lines have the text colour and are dashed or dotted."""
    look = style.look(line.series)
    if not line.muted:
        return look.colour, look.line, 1.0
    return style.INK, "dashed" if line.learnt.is_fresh else "dotted", MUTED


def _centre(line: _Line, column: str) -> tuple[Array, Array]:
    """Return the mean and standard deviation over seeds for each window; a single seed has a deviation of 0."""
    values = line.smooth(column)
    middle: Array = values.mean(axis=0)
    spread: Array = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(middle)
    return middle, spread


def _ends(line: _Line, column: str) -> Array:
    """Return the finite ends of the spread around a line, or the finite means of a muted line."""
    middle, spread = _centre(line, column)
    spread = np.zeros_like(spread) if line.muted else spread
    both: Array = np.concatenate([middle - spread, middle + spread])
    found: Array = both[np.isfinite(both)]
    return found


def _shows(lines: Sequence[_Line], column: str) -> bool:
    return any(len(_ends(line, column)) for line in lines)


def _key(arm: Arm) -> tuple[object, ...]:
    return (arm.experiment, arm.model, *arm.key)
