"""The series that figures draw: labelled arms of one experiment and model."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from optbench.counting import grouped
from optbench.file_names import file_name
from optbench.plan import Trial
from optbench.stats.arms import Arm, arms
from optbench.stats.results import Results

Item = TypeVar("Item")

MAX_SERIES = 8
"""Maximum number of series in a panel; more could not be distinguished."""
VARIANTS_SHOWN = 3
"""Maximum number of a sweep's variants in figures that are not about sweeps."""


@dataclass(frozen=True)
class Series:
    """An arm as shown in a figure.

    label: the arm's optimizer and variant, followed by its run if there are several runs.
    colour: the index of the optimizer in the report, so that its colour is the same in every figure.
    turn: the number of earlier series of the same optimizer in a figure; it determines the marker and the line style.
    """

    arm: Arm
    label: str
    colour: int
    turn: int = 0

    @property
    def trials(self) -> list[Trial]:
        """The trials that are `ok`, in seed order; only these are drawn."""
        return [trial for seed, trial in self.arm.trials.items() if self.arm.status(seed) == "ok"]

    def values(self, metric: str) -> list[float]:
        """Return the metric's values in the trials that are `ok`, without undefined ones."""
        return [value for value in self.arm.values(metric) if math.isfinite(value)]


@dataclass(frozen=True)
class Group:
    """Every arm of one experiment and model, over all runs of the report."""

    experiment: str
    model: str
    series: tuple[Series, ...]

    def figure_name(self, kind: str, *more: str) -> str:
        """Return the name of a figure about the group; `more` distinguishes figures of the same kind."""
        return figure_name(kind, self.experiment, self.model, *more)

    @functools.cached_property
    def shown(self) -> tuple[Series, ...]:
        """The series to draw: every optimizer without a sweep, and a few evenly spaced variants of each sweep."""
        chosen = self._variants
        return _turns([series for series in self.series if series.arm.variant in chosen[_sweep_of(series)]])

    @property
    def left_out(self) -> tuple[Series, ...]:
        labels = {series.label for series in self.shown}
        return tuple(series for series in self.series if series.label not in labels)

    @property
    def _variants(self) -> dict[tuple[str, str], list[str]]:
        """The variants to show, by run and optimizer."""
        found = grouped((_sweep_of(series), series.arm.variant) for series in self.series)
        for count in range(VARIANTS_SHOWN, 1, -1):
            if sum(min(len(variants), count) for variants in found.values()) <= MAX_SERIES:
                return {sweep: _spread(variants, count) for sweep, variants in found.items()}
        return {sweep: _spread(variants, 1) for sweep, variants in found.items()}


def figure_name(*parts: str) -> str:
    """Return the name of a figure of this kind and subject, e.g. `spectrum_permuted-mnist`."""
    return file_name(parts, underscores=1)


def groups(results: Sequence[Results]) -> list[Group]:
    """Return one group for each experiment and model, in suite order, with the arms of all runs."""
    colours: dict[str, int] = {}
    found: dict[tuple[str, str], list[Series]] = {}
    for result in results:
        suffix = f" ({result.run.id})" if len(results) > 1 else ""
        for optimizer in result.suite.optimizers:
            colours.setdefault(optimizer, len(colours))
        for arm in arms(result):
            series = Series(arm, f"{arm.label}{suffix}", colours[arm.optimizer])
            found.setdefault((arm.experiment, arm.model), []).append(series)
    return [Group(experiment, model, tuple(series)) for (experiment, model), series in found.items()]


def by_experiment(found: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups of each experiment, one per model."""
    return grouped((group.experiment, group) for group in found)


def chunks(series: Sequence[Series], size: int = MAX_SERIES) -> list[Sequence[Series]]:
    """Distribute series evenly over as few panels as possible, e.g. 10 series as 5 and 5."""
    return split(series, -(-len(series) // size))


def split(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """Split a sequence into `count` sections of nearly equal length, longer ones first."""
    share, more = divmod(len(items), count) if count else (0, 0)
    bounds = [i * share + min(i, more) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN if there are no values."""
    return math.fsum(values) / len(values) if values else math.nan


def spread_out(count: int, width: float) -> list[float]:
    """Return `count` evenly spaced offsets in [-width/2, width/2], for seeds drawn side by side."""
    return [0.0] if count == 1 else [width * (i / (count - 1) - 0.5) for i in range(count)]


def _sweep_of(series: Series) -> tuple[str, str]:
    run = series.label.removeprefix(series.arm.label)
    return run, series.arm.optimizer


def _spread(variants: Sequence[str], count: int) -> list[str]:
    """Select at most `count` variants: both ends and evenly spaced ones between, or the middle one if `count` is 1."""
    if len(variants) <= count:
        return list(variants)
    if count == 1:
        return [variants[len(variants) // 2]]
    return [variants[round(i * (len(variants) - 1) / (count - 1))] for i in range(count)]


def _turns(shown: Sequence[Series]) -> tuple[Series, ...]:
    met: Counter[int] = Counter()
    turned = []
    for series in shown:
        turned.append(replace(series, turn=met[series.colour]))
        met[series.colour] += 1
    return tuple(turned)
