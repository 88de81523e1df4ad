"""The learning rate schedule `protocol.schedule`: at each step, a factor on the learning rate of every parameter group.

With N steps in the span, floor f, W = min(round(warmup · N), N - 1) steps of warm-up,
D = min(max(round(decay · N), 1), N - W) steps of decay, and steps t = 0, ..., N - 1:

    warm-up, t < W:     (t + 1) / (W + 1)
    constant:           1
    linear:             1 - (1 - f) (t - W) / (N - W)
    cosine:             f + (1 - f) (1 + cos(π (t - W) / (N - W))) / 2
    wsd:                1 for t < N - D,  then  1 - (1 - f) (t - N + D) / D

The factor is 1 at the first step after the warm-up and is never 0. Except with `constant`, it would be f one step after
the last step.
In PyTorch: `LinearLR(1 / (W + 1), 1, W)`, then `ConstantLR(1)`, `LinearLR(1, f, N - W)` or
`CosineAnnealingLR(N - W, f · lr)`, joined by `SequentialLR`; for wsd `ConstantLR(1)` and then `LinearLR(1, f, D)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from optbench.plan import Trial
from optbench.store.tables import CurveRow, Row
from optbench.suite.rate_schedule import RateSchedule

UNSCHEDULED = "trained without the schedule"


def factor(schedule: RateSchedule, steps: int, step: int) -> float:
    """Return the factor at `step` (0..steps-1); later steps have the factor of the last step."""
    step = min(step, steps - 1)
    warmup = min(round(schedule.warmup * steps), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    fall = 1 - schedule.floor
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1 - fall * (step - warmup) / (steps - warmup)
        case "cosine":
            return schedule.floor + fall * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        case "wsd":
            decay = min(max(round(schedule.decay * steps), 1), steps - warmup)
            return 1 - fall * max(0, step - steps + decay) / decay


@dataclass(frozen=True)
class RateCurve:
    """The learning rate factors of one member in one task."""

    schedule: RateSchedule
    steps: int
    """N, the number of steps in the schedule's span (the task or all tasks) if no task stops early."""
    before: int = 0
    """Number of steps taken in earlier tasks if the schedule spans all tasks; otherwise 0."""

    def factor(self, step: int) -> float:
        """Return the factor at a step of the task, counted from 0."""
        return factor(self.schedule, self.steps, self.before + step)


def unscheduled(schedule: RateSchedule | None, trial: Trial, rows: Iterable[Row]) -> str | None:
    """Return a note with the reason why a trial's learning rate did not follow the schedule.

    Return None if the learning rate followed the schedule, or if there is no schedule to follow.
    """
    if schedule is None or schedule.is_flat:
        return None
    if (name := trial.without_schedule) is not None:
        return f"{UNSCHEDULED}: {name} does not support one"
    rates = [row.lr for row in rows if isinstance(row, CurveRow)]
    return f"{UNSCHEDULED}: no parameter group has an lr" if rates and not any(rates) else None
