"""Paired solutions over seeds: the metrics of each pair of arms, with the null of each arm.

An arm's null consists of the same metrics between the arm and its controls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from optbench.metrics import METRICS
from optbench.plan import Trial, comparisons
from optbench.stats.arms import Arm, arms
from optbench.stats.between import Between
from optbench.stats.results import Results

SeedValues = Mapping[int, float]
"""Values by seed; NaN where undefined."""
ArmKey: TypeAlias = tuple[str, str, str, str]
"""Experiment, model, optimizer and variant."""


@dataclass(frozen=True)
class Measured:
    """The values of one metric between two arms, and between each arm and its controls (None without controls)."""

    values: SeedValues
    null_a: SeedValues | None
    null_b: SeedValues | None

    @property
    def null_range(self) -> tuple[float, float] | None:
        """The smallest and the largest finite value in the two nulls; None if there are no finite values."""
        nulls = [*(self.null_a or {}).values(), *(self.null_b or {}).values()]
        finite = [value for value in nulls if math.isfinite(value)]
        return (min(finite), max(finite)) if finite else None

    @property
    def outside(self) -> tuple[int, int] | None:
        """The number of seeds whose value is outside `null_range`, and the number of seeds that have a value.

        None if there is no range, or no seed has a value.
        """
        bounds, finite = self.null_range, [value for value in self.values.values() if math.isfinite(value)]
        if bounds is None or not finite:
            return None
        return sum(not bounds[0] <= value <= bounds[1] for value in finite), len(finite)


@dataclass(frozen=True)
class SolutionPair:
    """Two arms of one experiment and model whose solutions are compared seed by seed.

    planned: number of seeds to compare.
    measures: the pair's values by metric, in catalog order. Seeds not yet compared are omitted; the value is NaN on
        seeds on which an arm diverged, failed or ended above the target training loss.
    notes: the reasons why values are undefined, without repetitions.
    """

    run: str
    experiment: str
    model: str
    a: Arm
    b: Arm
    planned: int
    measures: Mapping[str, Measured]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.a.label}, {self.b.label}"


def solution_pairs(results: Results) -> list[SolutionPair]:
    """Return every pair of arms that the suite requests, in suite order; a pair not yet compared has no measures.

    Raises:
        StoreError: the table of pairs is unreadable.
    """
    named = {_name(arm): arm for arm in arms(results)}
    requested: dict[tuple[ArmKey, ArmKey], set[str]] = {}
    planned = (pair for one in comparisons(results.suite, [*results.trials, *results.controls]) for pair in one.pairs)
    for pair in planned:
        if pair.kind == "pair":
            requested.setdefault((_name(pair.a), _name(pair.b)), set()).add(pair.a.id)
    return [_pair(results, named[a], named[b], len(trials)) for (a, b), trials in requested.items()]


def _pair(results: Results, a: Arm, b: Arm, planned: int) -> SolutionPair:
    pair, null_a, null_b = Between.of(a, b), Between.of(a), Between.of(b)
    measures = {}
    for metric in METRICS:
        if metric in results.solutions and (values := _values(pair, metric)):
            nulls = (_values(null, metric) or None for null in (null_a, null_b))
            measures[metric] = Measured(values, *nulls)
    compared = (one for metric in results.solutions for one in pair.compared(metric).values())
    notes = tuple(dict.fromkeys(one.note for one in compared if one.note))
    return SolutionPair(results.run.id, a.experiment, a.model, a, b, planned, measures, notes)


def _values(pair: Between, metric: str) -> SeedValues:
    """Return a metric's values by seed, omitting seeds not yet compared.

    A value is NaN if an arm ended above the target training loss.
    """
    found = pair.compared(metric)
    return {seed: math.nan if pair.status(seed) == "above_target" else one.value for seed, one in found.items()}


def _name(of: Arm | Trial) -> ArmKey:
    return of.experiment, of.model, of.optimizer, of.variant
