"""Paired solutions over seeds: each metric of a pair of arms, with the nulls of the two arms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from optbench.metrics import METRICS
from optbench.plan import PairedSolutions, TrialPair, comparisons
from optbench.stats.results import Results

SeedValues = Mapping[int, float]
"""Seed -> value; NaN where undefined."""


@dataclass(frozen=True)
class ArmName:
    """An arm of a pair."""

    optimizer: str
    variant: str

    @property
    def label(self) -> str:
        """The arm's name: `adam`, or `adam lr=0.001` if settings were swept."""
        return self.optimizer if self.variant == "default" else f"{self.optimizer} {self.variant}"


ArmPair: TypeAlias = tuple[str, str, ArmName, ArmName]
"""Experiment, model, and the two arms."""


@dataclass(frozen=True)
class Measured:
    """The values of one metric between two arms, and between each arm and its controls, if any."""

    values: SeedValues
    null_a: SeedValues | None
    null_b: SeedValues | None

    @property
    def null_range(self) -> tuple[float, float] | None:
        """The smallest and the largest finite value in the two nulls; None if there is none."""
        nulls = [*(self.null_a or {}).values(), *(self.null_b or {}).values()]
        finite = [value for value in nulls if math.isfinite(value)]
        return (min(finite), max(finite)) if finite else None

    @property
    def outside(self) -> tuple[int, int] | None:
        """The number of seeds with a value outside `null_range`, and the number with a value; None if undefined."""
        bounds, finite = self.null_range, [value for value in self.values.values() if math.isfinite(value)]
        if bounds is None or not finite:
            return None
        return sum(not bounds[0] <= value <= bounds[1] for value in finite), len(finite)


@dataclass(frozen=True)
class SolutionPair:
    """Two arms of one experiment and model whose solutions are compared seed by seed.

    planned: number of seeds. measures: by metric, in catalog order; values omit seeds not yet compared, and are NaN for
    seeds on which an arm diverged, failed or ended above the target training loss. notes: why values are undefined,
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
    """Return every pair of arms requested by the suite, in order; a pair not yet compared has no measures.

    Raises:
        StoreError: the table is unreadable.
    """
    values: dict[ArmPair, dict[str, dict[int, float]]] = {}
    notes: dict[ArmPair, dict[str, None]] = {}
    seeds: Counter[ArmPair] = Counter()
    for comparison in comparisons(results.suite, [*results.trials, *results.controls]):
        for pair in comparison.pairs:
            place = _place(comparison, pair)
            seeds[place] += 1
            either_above = any(results.status(trial.id) == "above_target" for trial in (pair.a, pair.b))
            both = frozenset((pair.a.id, pair.b.id))
            for metric, of_metric in results.solutions.items():
                if (known := of_metric.get(both)) is not None:
                    value = math.nan if either_above else known.value
                    values.setdefault(place, {}).setdefault(metric, {})[comparison.seed] = value
                    if known.note:
                        notes.setdefault(place, {})[known.note] = None
    pairs = []
    for place, count in seeds.items():
        experiment, model, a, b = place
        if a == b:
            continue  # a null, which is part of its arm's other pairs
        of_pair = values.get(place, {})
        null_a, null_b = (values.get((experiment, model, side, side), {}) for side in (a, b))
        measures = {
            name: Measured(of_pair[name], null_a.get(name), null_b.get(name)) for name in METRICS if name in of_pair
        }
        why = tuple(notes.get(place, {}))
        pairs.append(SolutionPair(results.run.id, experiment, model, a, b, count, measures, why))
    return pairs


def _place(comparison: PairedSolutions, pair: TrialPair) -> ArmPair:
    a, b = (ArmName(trial.optimizer, trial.variant) for trial in (pair.a, pair.b))
    return comparison.experiment, comparison.model, a, b
