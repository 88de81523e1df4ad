"""The trials of a suite, and the cohorts into which trials are grouped."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.file_names import label
from optbench.optimizers import registry
from optbench.optimizers.spec import DECLARATIONS, OptimizerSpec
from optbench.suite import Suite, variants
from optbench.suite.measured import with_readings
from optbench.suite.schema import ExperimentSettings, OptimizerSettings

CONTROL = "control"
"""Stage of a control: a trial trained again with a different data order."""


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
    kinds: tuple[str, ...] = ()
    """User-defined targets among the dataset, tasks, model and metrics."""
    texts: tuple[str, ...] = ()
    """The user's text files in the dataset."""
    order: int = 0
    """Index of the data order drawn from the seed; 0 except for controls."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the trial's id, which also name its files."""
        order = (f"order={self.order}",) if self.order else ()
        return (self.experiment, self.model, self.optimizer, self.variant, f"seed={self.seed}", *order)

    @functools.cached_property
    def stepping(self) -> tuple[str, Mapping[str, Any]]:
        """Target and hyper-parameters of the optimizer that takes the steps, inside any wrappers that take none."""
        return registry.stepping(self.target, self.hyperparameters)

    @functools.cached_property
    def around(self) -> Mapping[str, Mapping[str, Any]]:
        """Hyper-parameters of each wrapper that takes no steps, by the wrapper's target, outermost first."""
        return registry.around(self.target, self.hyperparameters)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Hyper-parameters of the optimizer that takes the steps."""
        return self.stepping[1]

    @functools.cached_property
    def spec(self) -> OptimizerSpec:
        """The spec of the optimizer that takes the steps, found without importing the optimizer."""
        return registry.find(self.stepping[0])

    @functools.cached_property
    def without_schedule(self) -> str | None:
        """Target of the stepping optimizer, or of one inside it, that supports no schedule; None if all support one."""
        return registry.without_schedule(*self.stepping)

    @functools.cached_property
    def user_optimizers(self) -> frozenset[str]:
        """User-defined targets among the trial's optimizer and the optimizers inside it."""
        return registry.user_targets(self.target, self.hyperparameters)

    @property
    def user_code(self) -> frozenset[str]:
        """All user-defined targets that the trial uses."""
        return self.user_optimizers | frozenset(self.kinds)

    @property
    def user_files(self) -> frozenset[str]:
        """The user's code and text files on which the trial's result depends."""
        return self.user_code | frozenset(self.texts)

    @property
    def is_control(self) -> bool:
        """True for a control, which shows the effect of a different data order.

        Controls are not counted among the seeds of their arm.
        """
        return self.stage == CONTROL


@dataclass(frozen=True)
class Cohort:
    """Trials trained in lock-step.

    The trials can differ in seed, in settings that the optimizer's lane allows to differ, and in the optimizer's name.
    """

    experiment: str
    model: str
    optimizer: str
    """The name of the first trial's optimizer in the suite, used in file names."""
    trials: tuple[Trial, ...]

    @property
    def id(self) -> str:
        """Stable id of these trials, valid as a file name: a readable label and a digest."""
        digest = hashlib.sha256("\n".join(trial.id for trial in self.trials).encode()).hexdigest()[:12]
        return f"{label((self.experiment, self.model, self.optimizer), '.')}.{digest}"

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names of the trials' optimizers in the suite, in order of first appearance."""
        return tuple(dict.fromkeys(trial.optimizer for trial in self.trials))

    @property
    def trainings(self) -> tuple[tuple[Trial, ...], ...]:
        """The distinct trainings, as returned by the function `trainings`."""
        return trainings(self.trials)

    def split(self, parts: int) -> list[Cohort]:
        """Split the cohort into at most `parts` cohorts with nearly equal numbers of trainings.

        Trials keep their order within each cohort. Trials of one training stay together. So do trials with the same
        batches, where possible.
        """
        total = len(self.trainings)
        count = min(parts, total)
        return self._cut([total * i // count for i in range(count + 1)])

    def cut(self, count: int) -> list[Cohort]:
        """Split the cohort into one with `count` trainings and, if any are left, one with the remaining trainings.

        Trials are grouped as in `split`.
        """
        total = len(self.trainings)
        return self._cut([0, count, total] if count < total else [0, total])

    def _cut(self, bounds: Sequence[int]) -> list[Cohort]:
        places = {trial.id: i for i, trial in enumerate(self.trials)}
        distinct = sorted(self.trainings, key=lambda equal: (equal[0].seed, equal[0].order))
        found = []
        for a, b in itertools.pairwise(bounds):
            piece = sorted(itertools.chain(*distinct[a:b]), key=lambda trial: places[trial.id])
            found.append(Cohort(self.experiment, self.model, piece[0].optimizer, tuple(piece)))
        return found


def trainings(all_trials: Iterable[Trial]) -> tuple[tuple[Trial, ...], ...]:
    """Group trials that differ only in the names of their optimizer, variant and stage, in order of first appearance.

    Each group is trained once; its trials share the results.
    """
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in all_trials:
        # Compared as text, because 1, 1.0 and True are equal in Python but may have different effects in an optimizer.
        settings = json.dumps(dict(trial.hyperparameters), sort_keys=True)
        key = (trial.experiment, trial.model, trial.seed, trial.order, trial.target, settings)
        groups.setdefault(key, []).append(trial)
    return tuple(tuple(group) for group in groups.values())


def complete(suite: Suite) -> Suite:
    """Return the suite as a run records it, with the registry's defaults and each experiment's optimizers filled in."""
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
    """Return all trials of the suite, in the suite's order of experiments, models, optimizers, variants and seeds.

    A variant's controls follow its other trials. They have the same optimizer, seeds and initial weights, but a
    different data order.
    """
    found: list[Trial] = []
    for experiment_name, experiment in with_readings(suite).experiments.items():
        chosen = suite.taking_part(experiment)
        controlled = control_names(experiment, chosen)
        for model in experiment.models:
            for optimizer, overrides in chosen.items():
                settings = suite.optimizers[optimizer]
                hyperparameters = registry.complete(settings.target, {**settings.hyperparameters, **overrides})
                for variant in variants(hyperparameters):
                    orders = (0, 1) if optimizer in controlled else (0,)
                    for order, seed in itertools.product(orders, suite.seeds):
                        # The id consists of names and settings, so a trial has the same id in every run of a suite.
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
                                kinds=experiment.user_targets(model),
                                texts=experiment.text_targets,
                                order=order,
                            )
                        )
    return found


def control_names(experiment: ExperimentSettings, taking_part: Iterable[str]) -> frozenset[str]:
    """Return the names of the optimizers in an experiment that have controls."""
    if experiment.pairs is None:
        return frozenset()
    chosen = experiment.pairs.controls if experiment.pairs.controls is not None else experiment.pairs.against
    return frozenset(taking_part if chosen is None else chosen)


def cohorts(all_trials: Sequence[Trial]) -> list[Cohort]:
    """Group trials into the largest cohorts that their optimizers allow, in order of first appearance.

    Names of optimizers do not matter: trials of two optimizers in a suite share a cohort if they have the same target
    and the lane allows it.
    """
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in all_trials:
        key = (trial.experiment, trial.model, trial.target, trial.stepping[0], _shared_settings(trial))
        groups.setdefault(key, []).append(trial)
    return [Cohort(key[0], key[1], group[0].optimizer, tuple(group)) for key, group in groups.items()]


def _shared_settings(trial: Trial) -> str:
    """Return the settings that all trials of a cohort must share, as JSON text."""
    spec, settings = trial.spec, trial.settings
    if spec.lane == "batched":
        shared = {name: value for name, value in settings.items() if name not in spec.per_member}
        shared |= {f"{name} is 0": settings[name] == 0 for name in spec.apart}
    elif spec.source == "yours":
        # Declarations about a user's optimizer determine how it is called, and apply to all members of a cohort.
        shared = {name: value for name, value in settings.items() if name in DECLARATIONS}
    else:
        # With parameter groups or an instance per member, any setting can differ. The optimizers inside a wrapper could
        # differ, too, but are kept the same: a step of Shampoo takes much longer than a step of SGD, so a cohort of
        # both could not be split into parts of equal duration.
        shared = {"inside": _inside(*trial.stepping)}
    if trial.around:
        shared["around"] = list(trial.around)
    if penalty := trial.around.get("rank-penalty"):
        shared["rotated"] = penalty["rotated"]  # rotated in one call for all members of a stack
    return json.dumps(shared, sort_keys=True)


def _inside(target: str, settings: Mapping[str, Any]) -> list[Any]:
    """Return the optimizers that an optimizer wraps, each with those that it wraps in turn; empty if there are none."""
    hyperparameters = registry.find(target).hyperparameters.items()
    bases = [registry.base_settings(target, settings[n]) for n, hyper in hyperparameters if hyper.kind == "optimizer"]
    return [[base, _inside(base, within)] for base, within in bases]
