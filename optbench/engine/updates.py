"""The geometry of updates: each weight matrix's step, measured at a few points spread over training.

A step is the total change of the weights, including decay and momentum. The gradient is that of the batch at the
weights before the step, even if the optimizer evaluates other gradients. No additional steps or gradients are computed.

Legend: M members in the stack, P padded parameter count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import astuple

from torch import Tensor

from optbench.engine.evaluate import finite
from optbench.engine.stack import Layout
from optbench.metrics.updates import POINTS, geometry
from optbench.store.tables import UpdateRow


def watched(tasks: int, task: int, steps: int) -> frozenset[int]:
    """Return the steps of `task` (0..tasks-1) to watch, counted from 0.

    Training on all tasks is divided into `POINTS` equal parts, and the step in the middle of each part is watched. If
    training is short, some of these steps coincide.

    steps: the maximum number of steps in the task.
    """
    points = [(i + 0.5) * tasks / POINTS for i in range(POINTS)]
    return frozenset(int((point - task) * steps) for point in points if int(point) == task)


class Watch:
    """Measures the watched updates of a stack's members in one task."""

    def __init__(self, layout: Layout, task: int, due: Sequence[frozenset[int]]) -> None:
        """task: 0..T-1. due: each member's steps to watch, as returned by `watched`."""
        self._layout = layout
        self._matrices = [slot.name for slot in layout.slots if len(slot.shape) > 1]
        self._task = task
        self._due = due
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows: dict[int, list[UpdateRow]] = {}
        self._seconds = 0.0

    def begin(self, step: int, weights: Tensor, grads: Tensor) -> None:
        """Save the weights and gradients (M, P) before the update of `step` (from 0), for members that are due."""
        self._before = {i: (weights[i].clone(), grads[i].clone()) for i, due in enumerate(self._due) if step in due}

    def end(self, step: int, weights: Tensor) -> None:
        """Measure the update of `step`, given the weights (M, P) after it."""
        started = time.perf_counter()
        for i, (before, gradient) in self._before.items():
            found = [self._layout.views(row) for row in (before, gradient, weights[i] - before)]
            for name in self._matrices:
                values = map(finite, astuple(geometry(*(views[name] for views in found))))
                self._rows.setdefault(i, []).append(UpdateRow(self._task + 1, step + 1, name, *values))
        self._seconds += time.perf_counter() - started

    def read(self) -> tuple[float, dict[int, list[UpdateRow]]]:
        """Return the seconds spent on measuring since the last call, and the results by member."""
        found = self._seconds, self._rows
        self._seconds, self._rows = 0.0, {}
        return found


def layer_sizes(layout: Layout) -> dict[str, int]:
    """Return the number of weights in each matrix, by name."""
    return {slot.name: math.prod(slot.shape) for slot in layout.slots if len(slot.shape) > 1}
