"""Conditions that select the variants of a claim, as in `where: {last_task_accuracy: {above: 0.9}}`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optbench.stats.arms import Arm
from optbench.suite.claims import Bounds


@dataclass(frozen=True)
class Unmet:
    """A condition that a variant does not meet.

    mean: the mean of the metric over the `n` seeds on which it is defined; None if n = 0.
    planned: the number of planned seeds.
    """

    metric: str
    bounds: Bounds
    mean: float | None
    n: int
    planned: int


@dataclass(frozen=True)
class LeftOut:
    """A variant left out of a claim, with every condition that it does not meet."""

    arm: Arm
    unmet: tuple[Unmet, ...]


def unmet_conditions(arm: Arm, where: Mapping[str, Bounds]) -> tuple[Unmet, ...]:
    """Return the conditions that a variant does not meet; empty if it meets all of them.

    A condition is checked on the metric's mean over the trials that are `ok`. It is not met if no trial has a value.
    """
    unmet = []
    for metric, bounds in where.items():
        values = [value for value in arm.values(metric) if math.isfinite(value)]
        mean = statistics.fmean(values) if values else None
        if mean is None or not _within(mean, bounds):
            unmet.append(Unmet(metric, bounds, mean, len(values), len(arm.trials)))
    return tuple(unmet)


def select_variants(arms: Sequence[Arm], where: Mapping[str, Bounds]) -> tuple[list[Arm], tuple[LeftOut, ...]]:
    """Split variants into those that meet every condition and those that do not, each in the order of `arms`."""
    unmet = [(arm, unmet_conditions(arm, where)) for arm in arms]
    outside = tuple(LeftOut(arm, found) for arm, found in unmet if found)
    return [arm for arm, found in unmet if not found], outside


def _within(mean: float, bounds: Bounds) -> bool:
    return (bounds.above is None or mean > bounds.above) and (bounds.below is None or mean < bounds.below)
