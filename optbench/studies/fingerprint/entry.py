"""One optimizer's results in the suite: a value for each strip and seed, and the outcome of each trial.

Legend: `n` seeds, in ascending order; arrays (16, n) have a row for each strip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optbench.errors import ComparisonError, UsageError, unknown
from optbench.stats.arms import Arm, arms
from optbench.stats.results import Results
from optbench.studies.fingerprint.strips import EXPERIMENTS, STRIPS, TUNED_ON
from optbench.studies.fingerprint.width import Width, width
from optbench.studies.tuning.statistics import tunings
from optbench.suite import Suite
from optbench.suite.dump import content

Array: TypeAlias = NDArray[np.float64]

WITHIN_LEARNING = {"permuted": "learning_accuracy", "pairs": "learning_accuracy", "plasticity": "late_online_accuracy"}
"""The metric that shows whether an experiment was learnt at all, by experiment. On plasticity, the metric's value is
divided by that of `plasticity_kept`."""


LEARNT = {
    "permuted": "test accuracy right after training on each task",
    "pairs": "test accuracy right after training on each task",
    "plasticity": "best online accuracy over a tenth of the tasks",
}
"""Description of `Trials.learnt`, by experiment."""


@dataclass(frozen=True)
class TuningRun:
    """The run that chose the learning rates, and its number of seeds."""

    path: Path
    seeds: int


@dataclass(frozen=True)
class Trials:
    """One experiment's trials, one per seed.

    states: `ok`, `diverged`, `failed`, `missing` or `above_target`.
    starts: hashes of the initial weights; empty strings if unknown.
    learnt: accuracy right after training on a task, mean over tasks, (n,); on `plasticity`, the best online accuracy
        over a tenth of the tasks. NaN if the trial or the experiment has no such accuracy.
    """

    states: tuple[str, ...]
    starts: tuple[str, ...]
    learnt: Array


@dataclass(frozen=True)
class Entry:
    """One optimizer's results.

    values: (16, n); NaN where undefined. trials, settings: trials and hyper-parameters, by experiment.
    width: width of the learning-rate optimum; None if unknown. tuning: None if the learning rates were given.
    """

    name: str
    target: str
    seeds: tuple[int, ...]
    values: Array
    trials: Mapping[str, Trials]
    settings: Mapping[str, Mapping[str, Any]]
    width: Width | None = None
    tuning: TuningRun | None = None

    def on(self, seeds: Sequence[int]) -> Entry:
        """Return the entry restricted to these seeds."""
        where = [self.seeds.index(seed) for seed in seeds]
        trials = {
            name: Trials(tuple(one.states[i] for i in where), tuple(one.starts[i] for i in where), one.learnt[where])
            for name, one in self.trials.items()
        }
        return replace(self, seeds=tuple(seeds), values=self.values[:, where], trials=trials)


def read_entry(results: Results, optimizer: str | None = None, tuning: Results | None = None) -> Entry:
    """Read an optimizer's entry from a run of the suite.

    optimizer: the optimizer's name; can be None if the run has only one optimizer.
    tuning: the run that chose the optimizer's learning rates; None if there is none.

    Raises:
        UsageError: the run has no such optimizer, or has several and none is named.
        ComparisonError: an experiment does not have exactly one setting and one model for the optimizer.
    """
    run = results.run.id
    names = list(dict.fromkeys(trial.optimizer for trial in results.trials))
    if optimizer is None:
        if len(names) != 1:
            raise UsageError(
                f"{run}: expected RUN:OPTIMIZER, because the run has several optimizers: {', '.join(names)}"
            )
        (optimizer,) = names
    elif optimizer not in names:
        raise UsageError(f"{run}: {unknown('optimizer', optimizer, names)}")
    found = {}
    for experiment in EXPERIMENTS:
        here = [arm for arm in arms(results) if (arm.experiment, arm.optimizer) == (experiment, optimizer)]
        if len(here) != 1:
            what = "none" if not here else f"several ({len(here)})"
            raise ComparisonError(
                f"{run}: expected one setting of {optimizer} and one model on {experiment}, got {what}"
            )
        found[experiment] = here[0]
    seeds = tuple(sorted(set.intersection(*(set(arm.trials) for arm in found.values()))))
    values = np.array(
        [[_value(found[strip.experiment], strip.metric, seed) for seed in seeds] for strip in STRIPS], np.float64
    ).reshape(len(STRIPS), len(seeds))
    first = found[EXPERIMENTS[0]]
    settings = {name: dict(next(iter(arm.trials.values())).hyperparameters) for name, arm in found.items()}
    trials = {name: _trials(arm, seeds) for name, arm in found.items()}
    target = next(iter(first.trials.values())).target
    tuned = None
    if tuning is not None and optimizer in {trial.optimizer for trial in tuning.trials}:
        tuned = TuningRun(tuning.run.path, len(tuning.suite.seeds))
    return Entry(optimizer, target, seeds, values, trials, settings, _width(tuning, optimizer), tuned)


def _value(arm: Arm, metric: str, seed: int) -> float:
    return arm.value(metric, seed) if arm.status(seed) == "ok" else math.nan


def _trials(arm: Arm, seeds: Sequence[int]) -> Trials:
    rows = [arm.results.rows.get(arm.trials[seed].id) for seed in seeds]
    return Trials(
        tuple(arm.status(seed) for seed in seeds),
        tuple((row.init_hash or "") if row is not None else "" for row in rows),
        np.array([_learnt(arm, seed) for seed in seeds], np.float64),
    )


def _learnt(arm: Arm, seed: int) -> float:
    if arm.experiment not in WITHIN_LEARNING or arm.status(seed) != "ok":
        return math.nan
    found = arm.value(WITHIN_LEARNING[arm.experiment], seed)
    if arm.experiment == "plasticity":
        kept = arm.value("plasticity_kept", seed)
        return found / kept if kept else math.nan
    return found


def _width(tuning: Results | None, optimizer: str) -> Width | None:
    if tuning is None:
        return None
    for tuned in tunings(tuning):
        if (tuned.experiment, tuned.optimizer) == (TUNED_ON, optimizer):
            rates = [path for path in tuned.settings[0].hyperparameters if path.rpartition(".")[2] == "lr"]
            if len(rates) == 1:
                return width([(s.hyperparameters[rates[0]], s.learning) for s in tuned.settings])
    return None


def experiments_of(suite: Suite) -> dict[str, Any]:
    """Return the settings, other than optimizers and metrics, that determine the meaning of a run's values.

    As in the suite's hash, settings that were added in later versions are omitted if they have their default values.
    """
    plain = content(suite)
    kept = {
        name: {key: value for key, value in experiment.items() if key in ("dataset", "tasks", "models", "protocol")}
        for name, experiment in plain["experiments"].items()
        if name in EXPERIMENTS
    }
    return {"seed": plain["seed"], "experiments": kept}
