"""From a suite to its trials, and from trials to the cohorts that are trained in lock-step."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.optimizers import registry
from optbench.suite import Suite, variants
from optbench.suite.schema import ExperimentSettings, OptimizerSettings

CONTROL = "control"
"""The stage of a trial that is trained once more in another data order."""


@dataclass(frozen=True)
class Trial:
    """One optimizer configuration on one experiment and model, with one seed."""

    id: str
    experiment: str
    model: str
    optimizer: str
    variant: str
    seed: int
    stage: str
    target: str
    hyperparameters: Mapping[str, Any]
    order: int = 0
    """Which of the data orders of its seed it sees; all that is compared sees the first, 0."""

    @property
    def is_control(self) -> bool:
        """Whether it only shows what another data order does (`pairs` in a suite): no seed of an arm."""
        return self.stage == CONTROL


@dataclass(frozen=True)
class Cohort:
    """Trials that differ only in seed and in hyper-parameters that may differ between members."""

    experiment: str
    model: str
    optimizer: str
    trials: tuple[Trial, ...]

    @property
    def id(self) -> str:
        """Stable name of exactly these trials, usable in a file name."""
        digest = hashlib.sha256("\n".join(trial.id for trial in self.trials).encode()).hexdigest()[:12]
        return f"{self.experiment}.{self.model}.{self.optimizer}.{digest}"

    def split(self, parts: int) -> list[Cohort]:
        """At most `parts` cohorts of nearly equal size with the same trials, in order."""
        count = min(parts, len(self.trials))
        bounds = [len(self.trials) * i // count for i in range(count + 1)]
        pieces = [self.trials[a:b] for a, b in itertools.pairwise(bounds)]
        return [Cohort(self.experiment, self.model, self.optimizer, piece) for piece in pieces]


def complete(suite: Suite) -> Suite:
    """The suite with the registry's defaults written out for every optimizer: what a run records."""
    optimizers = {
        name: OptimizerSettings(target=settings.target, **registry.complete(settings.target, settings.hyperparameters))
        for name, settings in suite.optimizers.items()
    }
    experiments = {
        name: experiment.model_copy(update={"optimizers": dict(experiment.optimizers or {o: {} for o in optimizers})})
        for name, experiment in suite.experiments.items()
    }
    return suite.model_copy(update={"optimizers": optimizers, "experiments": experiments})


def trials(suite: Suite) -> list[Trial]:
    """Every trial of the suite: experiments, then models, optimizers, variants and seeds, in the suite's order.

    Controls follow the trials of their variant: the same optimizer, seed and initial weights in another data order.
    """
    found: list[Trial] = []
    for experiment_name, experiment in suite.experiments.items():
        chosen = experiment.optimizers if experiment.optimizers is not None else {name: {} for name in suite.optimizers}
        controlled = control_names(experiment, chosen)
        for model in experiment.models:
            for optimizer, overrides in chosen.items():
                settings = suite.optimizers[optimizer]
                hyperparameters = registry.complete(settings.target, {**settings.hyperparameters, **overrides})
                for variant in variants(hyperparameters):
                    orders = (0, 1) if optimizer in controlled else (0,)
                    for order, seed in itertools.product(orders, suite.seeds):
                        # Named after what it is, so that the same trial has the same id in every run of a suite.
                        parts = [experiment_name, model, optimizer, variant.name, f"seed={seed}"]
                        parts += [f"order={order}"] if order else []
                        found.append(
                            Trial(
                                id="/".join(parts),
                                experiment=experiment_name,
                                model=model,
                                optimizer=optimizer,
                                variant=variant.name,
                                seed=seed,
                                stage=CONTROL if order else suite.stage,
                                target=settings.target,
                                hyperparameters=variant.hyperparameters,
                                order=order,
                            )
                        )
    return found


def control_names(experiment: ExperimentSettings, taking_part: Iterable[str]) -> frozenset[str]:
    """The optimizers of an experiment that are trained in another data order, too."""
    if experiment.pairs is None:
        return frozenset()
    chosen = experiment.pairs.controls if experiment.pairs.controls is not None else experiment.pairs.against
    return frozenset(taking_part if chosen is None else chosen)


def cohorts(all_trials: Sequence[Trial]) -> list[Cohort]:
    """Group trials into the largest cohorts that their optimizers allow, in order of first appearance."""
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in all_trials:
        groups.setdefault((trial.experiment, trial.model, trial.optimizer, _shared_settings(trial)), []).append(trial)
    return [Cohort(key[0], key[1], key[2], tuple(group)) for key, group in groups.items()]


def _shared_settings(trial: Trial) -> str:
    spec = registry.find(trial.target)
    if spec.lane != "batched":
        return ""  # parameter groups, or one instance per member: any setting may differ
    shared = {k: v for k, v in trial.hyperparameters.items() if k not in spec.per_member}
    return json.dumps(shared, sort_keys=True)
