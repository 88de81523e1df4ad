"""Pairs of arms whose solutions are compared with each other: the sides of claims about pairs of solutions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from optbench.plan import Trial
from optbench.stats.arms import Arm
from optbench.stats.learning import Shortcoming
from optbench.store.pairs_table import PairValue
from optbench.suite.readings import Data
from optbench.suite.sides import side_text

WORST_FIRST = ("missing", "failed", "diverged", "above_target", "ok")


@dataclass(frozen=True)
class Between(Arm):
    """An arm paired with another arm or with its own controls, seed by seed.

    `trials` holds the trials of the first arm. A metric of two solutions has a value for each seed on which both
    trials ended.
    """

    first: Arm
    partners: dict[int, Trial]
    """The trials of the other arm, or the controls, by seed."""
    second: Arm | None
    """The other arm, or None if the first arm is paired with its controls.

    Pairs of a trial and its control form the null: the two trials differ only in the order of the batches.
    """

    @staticmethod
    def of(first: Arm, second: Arm | None = None) -> Between:
        """Pair the trials of two arms, seed by seed, or those of one arm with its controls if `second` is None."""
        if second is None:
            controls = (trial for trial in first.results.controls if _arm(trial) == _arm_of(first))
            partners = {trial.seed: trial for trial in controls}
        else:
            partners = dict(second.trials)
        other = second or first
        names = side_text([first.optimizer, other.optimizer])
        plain = first.variant == other.variant == "default"
        variant = "default" if plain else side_text([first.variant, other.variant])
        return Between(
            first.results, first.experiment, first.model, names, variant, first.trials, first, partners, second
        )

    @property
    def label(self) -> str:
        """The pair's name, e.g. `adam with sgd` or `adam lr=0.001 with itself`."""
        return side_text([self.first.label, (self.second or self.first).label])

    @property
    def arms(self) -> tuple[Arm, ...]:
        return (self.first, self.second) if self.second else (self.first,)

    def status(self, seed: int) -> str:
        """Return the worse of the statuses of the two trials with this seed."""
        found = (self.first.status(seed), self._status_of_partner(seed))
        return min(found, key=WORST_FIRST.index)

    def value(self, metric: str, seed: int, data: Data = "pooled") -> float:
        """Return the value of a metric of the two solutions with this seed; NaN if undefined or not measured."""
        found = self._found(metric, seed)
        return found.value if found else math.nan

    def compared(self, metric: str) -> dict[int, PairValue]:
        """Return the values of a metric of two solutions, by seed, omitting seeds that have not been compared yet."""
        found = ((seed, self._found(metric, seed)) for seed in self.trials)
        return {seed: one for seed, one in found if one is not None}

    def took(self, metric: str) -> bool:
        return bool(self.compared(metric))

    def undefined(self, metric: str, seeds: Iterable[int]) -> set[str]:
        known = [self._found(metric, seed) for seed in seeds if self.status(seed) == "ok"]
        notes = {found.note for found in known if found and found.note and math.isnan(found.value)}
        return notes | ({"not compared yet"} if None in known else set())

    @property
    def shortcoming(self) -> Shortcoming | None:
        """The first arm's shortcoming or, if it has none, the second arm's; None if neither has one."""
        return next((arm.shortcoming for arm in self.arms if arm.shortcoming), None)

    def _status_of_partner(self, seed: int) -> str:
        return self.results.status(self.partners[seed].id) if seed in self.partners else "missing"

    def _found(self, metric: str, seed: int) -> PairValue | None:
        if seed not in self.partners:
            return None
        trials = frozenset((self.trials[seed].id, self.partners[seed].id))
        return self.results.solutions.get(metric, {}).get(trials)


def _arm(trial: Trial) -> tuple[str, str, str, str]:
    return trial.experiment, trial.model, trial.optimizer, trial.variant


def _arm_of(arm: Arm) -> tuple[str, str, str, str]:
    return arm.experiment, arm.model, arm.optimizer, arm.variant
