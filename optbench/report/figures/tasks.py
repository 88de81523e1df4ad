"""Names of an experiment's tasks on an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench.report.figures import style
from optbench.tasks import Outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHARACTER = 0.085
"""Width of a character in inches, at the size of tick labels."""


@dataclass(frozen=True)
class TaskNames:
    """Names of tasks on an axis.

    names: the names, in order of training.
    title: the title of the axis.
    """

    names: tuple[str, ...]
    title: str


def task_names(outline: Outline, tasks: int) -> TaskNames:
    """Name tasks by classes (`0,1`) if all seeds share them, by angle (`30°`) for rotations, else by number."""
    names = outline.ticks if len(outline.ticks) == tasks else tuple(str(i + 1) for i in range(tasks))
    return TaskNames(names, f"{outline.axis}, in order of training")


def task_ticks(axes: Axes, which: style.Which, names: TaskNames, inches: float) -> None:
    """Set a tick for each task at 0, 1, ..., or for only some tasks if `inches` is too short for all."""
    room = max(1, int(inches / (CHARACTER * (max(map(len, names.names)) + 0.5))))
    style.name_ticks(axes, which, names.names, every=-(-len(names.names) // room))
