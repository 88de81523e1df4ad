"""What the tasks of an experiment are called on an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench.report.figures import style
from optbench.tasks import Outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHARACTER = 0.085
"""Inches, at the size of tick labels."""


@dataclass(frozen=True)
class TaskNames:
    """names: one per task, in the order of training. title: of their axis."""

    names: tuple[str, ...]
    title: str


def task_names(outline: Outline, tasks: int) -> TaskNames:
    """`0,1` and so on where every seed has the same classes in a task, `30°` for rotations, else a number."""
    names = outline.ticks if len(outline.ticks) == tasks else tuple(str(i + 1) for i in range(tasks))
    return TaskNames(names, f"{outline.axis}, in order of training")


def task_ticks(axes: Axes, which: style.Which, names: TaskNames, inches: float) -> None:
    """A tick for each task at 0, 1, ...; for some of them where `inches` is too short for all."""
    room = max(1, int(inches / (CHARACTER * (max(map(len, names.names)) + 0.5))))
    style.name_ticks(axes, which, names.names, every=-(-len(names.names) // room))
