"""Curves of forgetting: the scores on a task while later tasks are trained, as recorded by `follow_earlier`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.counting import grouped
from optbench.report.figures import style
from optbench.report.figures.curves import Curves, lines
from optbench.report.figures.curves import draw as draw_curves
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, chunks, groups, mean
from optbench.report.figures.tasks import task_names
from optbench.report.figures.wording import group_figure, means, score_of
from optbench.stats.results import Results
from optbench.store.tables import AccuracyRow, EarlierRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.2, 2.7
MOST = 4
"""Maximum number of tasks shown. The first tasks are shown because they are followed by the most training."""


def forgetting_curves(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment and model with curves; its panels show up to `MOST` tasks, earliest first."""
    read = {result.run.path: read_curves(result) for result in results}
    found = []
    for group in groups(results) if any(read.values()) else ():
        tasks = sorted({task for series in group.shown for task in _tasks(series, read)})[:MOST]
        if tasks:
            found.append(_figure(group, tasks, read))
    return found


def read_curves(results: Results) -> Curves[int]:
    """Read the curve of each trial and task, starting at the end of training on the task; omit points without a score.

    The x axis is the number of tasks trained so far, with the current one counted as a fraction.
    """
    in_bits = {trial.id: trial.experiment in results.in_bits for trial in results.trials}
    rows = results.run.table(EarlierRow.table).to_pylist()
    last: dict[tuple[str, int], int] = {}
    for row in rows:
        key = row["trial"], row["task"]
        last[key] = max(last.get(key, 1), row["step"])
    points = []
    for row in rows:
        if (trial := row["trial"]) in in_bits:
            place = row["task"] - 1 + row["step"] / last[trial, row["task"]]
            score = _score(row["accuracy"], row["bits_per_byte"], in_bits=in_bits[trial])
            points.append(((trial, row["earlier_task"]), (place, score)))
    followed = grouped(points)
    for row in results.run.table(AccuracyRow.table).to_pylist() if followed else ():
        if row["task"] == row["after_task"] and (key := (row["trial"], row["task"])) in followed:
            score = _score(row["validation_accuracy"], row["validation_bits_per_byte"], in_bits=in_bits[key[0]])
            followed[key].append((float(row["task"]), score))
    return {key: tuple(sorted(point for point in curve if math.isfinite(point[1]))) for key, curve in followed.items()}


def _score(accuracy: float | None, bits: float | None, *, in_bits: bool) -> float:
    found = accuracy if not in_bits else None if bits is None else -bits
    return math.nan if found is None else found


def _tasks(series: Series, read: Mapping[Path, Curves[int]]) -> set[int]:
    known, trials = read[series.arm.results.run.path], {trial.id for trial in series.trials}
    return {task for trial, task in known if trial in trials}


def _figure(group: Group, tasks: Sequence[int], read: Mapping[Path, Curves[int]]) -> Figure:
    shown = [series for series in group.shown if any(lines(series, task, read) for task in tasks)]
    names = task_names(shown[0].arm.tasks, shown[0].arm.tasks.count).names
    score, first = score_of(shown), tasks[0]
    limits = style.limits([y for s in shown for task in tasks for line in lines(s, task, read) for _, y in line])
    ends = [(s.label, mean([line[-1][1] for line in found])) for s in shown if (found := lines(s, first, read))]
    what = (
        f"{score[:1].upper()}{score[1:]} on a task's validation data after training on the task and while later tasks "
        f"are trained, {group.experiment}, {group.model}; a thin line is a seed, and a thick line is the mean."
    )
    alt = f"Mean {score} on {names[first - 1]} at the end: {means(ends)}."
    panels = [_panel(names[task - 1], task, part, read, limits) for task in tasks for part in chunks(shown)]
    return group_figure(group, "forgetting-curves", "how tasks are forgotten", what, alt, panels)


def _panel(
    name: str, task: int, part: Sequence[Series], read: Mapping[Path, Curves[int]], limits: tuple[float, float]
) -> Panel:
    def draw(axes: Axes) -> None:
        draw_curves(axes, part, task, read)
        axes.set_xlim(1, part[0].arm.tasks.count)
        axes.set_ylim(limits)
        style.labels(axes, "tasks trained", score_of(part))

    return Panel(draw, WIDTH, HEIGHT, name, part)
