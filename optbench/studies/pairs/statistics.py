"""Paired solutions over seeds: each metric of a pair of arms, with the nulls of the two arms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from optbench.metrics import METRICS
from optbench.plan import PairedSolutions, comparisons
from optbench.stats.results import Results
from optbench.store.columns import codes, numbers

SeedValues = Mapping[int, float]
"""Seed -> value; NaN where undefined."""


@dataclass(frozen=True)
class ArmName:
    """An arm of a pair."""

    optimizer: str
    variant: str

    @property
    def label(self) -> str:
        """Its name: `adam`, or `adam lr=0.001` if settings were swept."""
        return self.optimizer if self.variant == "default" else f"{self.optimizer} {self.variant}"


ArmPair: TypeAlias = tuple[str, str, ArmName, ArmName]
"""Experiment, model, and the two arms."""


@dataclass(frozen=True)
class Measured:
    """One metric of a pair of arms: between them, and between each and its controls, if any."""

    values: SeedValues
    null_a: SeedValues | None
    null_b: SeedValues | None

    @property
    def null_range(self) -> tuple[float, float] | None:
        """The smallest and the largest value of both nulls; None without values."""
        nulls = [*(self.null_a or {}).values(), *(self.null_b or {}).values()]
        finite = [value for value in nulls if math.isfinite(value)]
        return (min(finite), max(finite)) if finite else None

    @property
    def outside(self) -> tuple[int, int] | None:
        """The number of seeds with a value outside that range, and of all; None without values."""
        bounds, finite = self.null_range, [value for value in self.values.values() if math.isfinite(value)]
        if bounds is None or not finite:
            return None
        return sum(not bounds[0] <= value <= bounds[1] for value in finite), len(finite)


@dataclass(frozen=True)
class SolutionPair:
    """Two arms of one experiment and model whose solutions are compared seed by seed.

    planned: number of seeds. measures: by metric, in catalog order; values omit seeds not yet compared, and are NaN for
    seeds on which a side diverged, failed or ended above the target training loss. notes: why values are undefined,
    each reason once.
    """

    run: str
    experiment: str
    model: str
    a: ArmName
    b: ArmName
    planned: int
    measures: Mapping[str, Measured]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.a.label}, {self.b.label}"


def solution_pairs(results: Results) -> list[SolutionPair]:
    """Return every pair of arms requested by the suite, in order; without measures if not yet compared.

    Raises:
        StoreError: the table is unreadable.
    """
    planned = comparisons(results.suite, [*results.trials, *results.controls])
    if not planned:
        return []
    found, notes = _values(results)
    seeds = Counter(place for comparison in planned for place in _places(comparison))
    pairs = []
    for place, count in seeds.items():
        experiment, model, a, b = place
        values = found.get(place, {})
        null_a, null_b = (found.get((experiment, model, side, side), {}) for side in (a, b))
        measures = {
            name: Measured(values[name], null_a.get(name), null_b.get(name)) for name in METRICS if name in values
        }
        why = tuple(notes.get(place, {}))
        pairs.append(SolutionPair(results.run.id, experiment, model, a, b, count, measures, why))
    return pairs


def _places(comparison: PairedSolutions) -> list[ArmPair]:
    sides = (
        [ArmName(side.optimizer, side.variant) for side in (p.a, p.b)] for p in comparison.pairs if p.kind == "pair"
    )
    return [(comparison.experiment, comparison.model, a, b) for a, b in sides]


def _values(results: Results) -> tuple[dict[ArmPair, dict[str, dict[int, float]]], dict[ArmPair, dict[str, None]]]:
    """Return place -> metric -> seed -> value, and place -> reasons; the null of an arm is between it and itself."""
    table = results.run.pairs
    sides = ("optimizer_a", "variant_a", "optimizer_b", "variant_b")
    columns = []
    for name in ("experiment", "model", *sides, "metric"):
        code, names = codes(table[name])
        columns.append([names[i] for i in code.tolist()])
    seeds = [int(seed) for seed in table["seed"].to_pylist()]
    found: dict[ArmPair, dict[str, dict[int, float]]] = {}
    notes: dict[ArmPair, dict[str, None]] = {}
    values = numbers(table["value"]).tolist()
    compared = zip(*(table[side].to_pylist() for side in ("trial_a", "trial_b")), strict=True)
    rows = zip(*columns, seeds, compared, values, table["note"].to_pylist(), strict=True)
    for *place, metric, seed, trials, value, note in rows:
        experiment, model, optimizer_a, variant_a, optimizer_b, variant_b = place
        key = (experiment, model, ArmName(optimizer_a, variant_a), ArmName(optimizer_b, variant_b))
        if any(results.status(trial) == "above_target" for trial in trials):
            value = math.nan
        found.setdefault(key, {}).setdefault(metric, {})[seed] = value
        if note:
            notes.setdefault(key, {})[note] = None
    return found, notes
