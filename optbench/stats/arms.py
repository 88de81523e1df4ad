"""Arms. An arm holds the trials of one optimizer setting on one experiment and model, one trial per seed.

Reports show an arm as a row; comparisons and claims use an arm as a side.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from optbench.metrics import Metric
from optbench.metrics.learning import NotLearnt
from optbench.plan import Trial
from optbench.stats.dormant import DORMANT, ManyDormant
from optbench.stats.learning import Shortcoming
from optbench.stats.results import Results
from optbench.suite.readings import Data
from optbench.suite.schema import ExperimentSettings, Tuning
from optbench.tasks import Outline

Status = Literal["ok", "diverged", "failed", "missing", "above_target"]
"""The status of a trial. `above_target`: finished, but above the target training loss on at least one task."""


@dataclass(frozen=True)
class Arm:
    """One optimizer setting on one experiment and model.

    trials: the trial of each planned seed.
    """

    results: Results
    experiment: str
    model: str
    optimizer: str
    variant: str
    trials: Mapping[int, Trial]

    @property
    def label(self) -> str:
        """The arm's name: `adam`, or `adam lr=0.001` if settings were swept."""
        return self.optimizer if self.variant == "default" else f"{self.optimizer} {self.variant}"

    @property
    def key(self) -> tuple[object, ...]:
        """A key that identifies the arm among all arms of the same experiment and model."""
        return self.results.run.path, self.optimizer, self.variant

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that form a side of a comparison: this arm or, for `Between`, the arms that are paired."""
        return (self,)

    @property
    def settings(self) -> ExperimentSettings:
        return self.results.suite.experiments[self.experiment]

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Every metric of the run by name, with its unit in this experiment."""
        return self.results.metrics_of(self.experiment)

    @property
    def in_bits(self) -> bool:
        """Whether the experiment is on text, for which the accuracy matrix R holds negative bits per byte."""
        return self.experiment in self.results.in_bits

    @property
    def tasks(self) -> Outline:
        return self.results.outlines[self.experiment]

    @property
    def tuning(self) -> Tuning | None:
        """The tuning budget of the optimizer's settings; None if the suite does not state one."""
        return (self.settings.tuning or {}).get(self.optimizer)

    def status(self, seed: int) -> str:
        """Return the status of the trial with this seed; `missing` if the trial is not finished or not planned."""
        return self.results.status(self.trials[seed].id) if seed in self.trials else "missing"

    def count(self, status: Status) -> int:
        return sum(self.status(seed) == status for seed in self.trials)

    @property
    def counts(self) -> dict[str, int]:
        """The number of planned trials, and the number of trials with each status."""
        return {"planned": len(self.trials), **{status: self.count(status) for status in get_args(Status)}}

    def value(self, metric: str, seed: int, data: Data = "pooled") -> float:
        """Return the final value of a metric in the trial with this seed; NaN if undefined or not measured."""
        values = self.results.values if data == "pooled" else self.results.last_task_values
        return values.get(metric, {}).get(self.trials[seed].id, math.nan)

    def validated(self, metric: str, seed: int) -> float:
        """Return an accuracy metric's value on validation data, whichever split is reported; NaN if undefined."""
        return self.results.validation.get(metric, {}).get(self.trials[seed].id, math.nan)

    def values(self, metric: str) -> list[float]:
        """Return the metric's value in each trial that is `ok`, in seed order; NaN where undefined."""
        return [self.value(metric, seed) for seed in self.trials if self.status(seed) == "ok"]

    def undefined(self, metric: str, seeds: Iterable[int]) -> set[str]:
        """Return the reasons why a metric derived from accuracies is undefined in `ok` trials with these seeds."""
        missing = [s for s in seeds if self.status(s) == "ok" and math.isnan(self.value(metric, s))]
        return {why for s in missing if (why := self.results.undefined(metric, self.trials[s].id))}

    @functools.cached_property
    def shortcoming(self) -> Shortcoming | None:
        """The tasks that trials of the arm failed to learn; None if every trial learnt every task."""
        found = [self.results.not_learnt.get(trial.id, NotLearnt()) for trial in self.trials.values()]
        return Shortcoming.of(self.count("ok"), found)

    @property
    def learning_warning(self) -> str | None:
        """Sentences about the tasks that trials of the arm failed to learn; None if every trial learnt every task."""
        if self.shortcoming is None:
            return None
        forgetting = any(map(math.isfinite, self.values("forgetting")))
        return f"{self.shortcoming}.{' What was not learnt cannot be forgotten.' if forgetting else ''}"

    @functools.cached_property
    def many_dormant(self) -> ManyDormant | None:
        """The trials with many dormant units; None if there are none."""
        return ManyDormant.of([(s, self.value(DORMANT, s)) for s in self.trials if self.status(s) == "ok"])

    @property
    def mixed_code(self) -> str | None:
        """A warning if trials of the arm were trained with different versions of the user's code; else None."""
        rows = [row for trial in self.trials.values() if (row := self.results.rows.get(trial.id))]
        counts = Counter(row.source_hash for row in rows if row.status != "failed")
        if len(counts) < 2:
            return None
        said = ", ".join(f"{n} with source {source or 'not recorded'}" for source, n in counts.items())
        return f"its trials were trained with {len(counts)} versions of the code ({said}); means include all trials"

    def took(self, metric: str) -> bool:
        """Return whether the metric was measured in at least one trial of the arm, even if its value is undefined."""
        found = self.results.values.get(metric, {})
        return any(trial.id in found for trial in self.trials.values())


def arms(results: Results) -> list[Arm]:
    """Return every arm of a run, in the suite's order."""
    found: dict[tuple[str, str, str, str], dict[int, Trial]] = {}
    for trial in results.trials:
        key = (trial.experiment, trial.model, trial.optimizer, trial.variant)
        found.setdefault(key, {})[trial.seed] = trial
    return [Arm(results, *key, trials) for key, trials in found.items()]
