"""Checks of a plan before training, to find errors that would otherwise end a run only after hours.

The checks cover optimizers and their settings, datasets, whether models fit the data, and whether every task of every
seed has a full batch. This module also finds the users' code to which targets refer, and detects changes to this code
since the run began.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.errors import KindError, OptbenchError, OptimizerError, UsageError
from optbench.execution.schedule import Plan
from optbench.kinds import Kind
from optbench.metrics.own import MetricSettings, resolve
from optbench.plan import Trial
from optbench.store.plugins import Plugin, plugins_of, read_copy
from optbench.store.read import is_run, read_json
from optbench.suite import Suite
from optbench.suite.measured import unlisted, with_readings
from optbench.suite.schema import ExperimentSettings
from optbench.targets import (
    TEXT,
    Source,
    is_file,
    is_text,
    read_file,
    read_source,
    read_text_file,
    said,
    source_hash,
    split,
)
from optbench.tasks import Outline

if TYPE_CHECKING:
    from optbench.data import Dataset
    from optbench.data.loading import Load
    from optbench.engine.blueprint import Blueprint


@dataclass(frozen=True)
class Code:
    """The users' code of a run.

    Attributes:
        sources: the sources of targets, by the part of the target before the colon.
        notes: notes for trials whose source was changed after the run began, by the same keys.
        unrecorded: the sources that are not in the run directory yet.
    """

    sources: Mapping[str, Source] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    unrecorded: Mapping[str, Source] = field(default_factory=dict)

    def of(self, trial: Trial) -> tuple[str | None, str | None]:
        """Return a trial's source hash and note, each of which is None if the trial has none."""
        targets = sorted(trial.user_files)
        notes = [self.notes[where] for target in targets if (where := split(target)[0]) in self.notes]
        return source_hash(targets), "; ".join(dict.fromkeys(notes)) or None


def find_code(plan: Plan, resume: Path | None, suite_folder: Path | None, *, force: bool = False) -> Code:
    """Find the users' code and texts that a plan's trials name, importing modules but not executing files.

    A file is looked up next to the suite, then in the working directory. If the suite is the `suite.yaml` of a run, the
    run's copies are used. A run resumed from its own suite uses the original files, or its copies of files that no
    longer exist.

    resume: the directory of the run to resume; None for a new run.
    suite_folder: the folder of the suite file; None if a run is resumed from its own suite.
    force: True to continue even with changed code.

    Raises:
        UsageError: the code of some remaining trials has changed since the run was made, and `force` is False.
        OptbenchError: a file is missing or cannot be read.
    """
    named = {split(target)[0]: target for trial in plan.trials for target in trial.user_files}
    recorded = plugins_of(read_json(resume)) if resume is not None and named else {}
    found = {where: find_source(target, suite_folder, resume) for where, target in named.items()}
    sources = {where: source for where, source in found.items() if source is not None}
    changed = {w: s for w, s in sources.items() if w in recorded and s.hash != recorded[w].source_hash}
    left = {split(target)[0] for trial in plan.trials if trial.id not in plan.done for target in trial.user_files}
    for where in changed:
        if where in left and not force:
            other = "another text" if is_text(where) else "other code"
            raise UsageError(
                f"--resume {resume}: {_differing(changed[where], recorded[where])} has changed since the run was made, "
                f"so the remaining trials would be trained with {other}; --force trains them anyway"
            )
    first = _first_hashes(resume) if resume is not None and named else {}
    notes = {
        where: f"trained after {_changed_file(source, recorded.get(where))} was changed: source {source.hash}, "
        f"{first[where]} when the run began"
        for where, source in sources.items()
        if where in first and source.hash != first[where]
    }
    new = {where: source for where, source in sources.items() if where not in recorded or where in changed}
    return Code(sources, notes, new)


def find_source(target: str, suite_folder: Path | None, resume: Path | None = None) -> Source | None:
    """Read the source of one target, looked up as in `find_code`. Raises OptbenchError if a file cannot be read."""
    where = split(target)[0]
    run = resume if suite_folder is None else suite_folder if is_run(suite_folder) else None
    plugin = plugins_of(read_json(run)).get(where) if run is not None and (is_file(where) or is_text(where)) else None
    if run is not None and plugin is not None:
        return _original(run, plugin) if suite_folder is None else read_copy(run, plugin)
    return read_source(target, [] if suite_folder is None else [suite_folder])


def check(plan: Plan, load: Load) -> dict[str, Outline]:
    """Check the optimizers of a plan's remaining trials, and the data, models, tasks and metrics of its experiments.

    Return an outline of each experiment's tasks, by experiment.

    Raises:
        OptbenchError: an optimizer cannot be imported or rejects its settings, data are missing, a model does not fit
            the data or an optimizer, or a task has no full batch.
    """
    check_penalties(plan.suite, left_of(plan))
    # Late, because importing torch takes seconds.
    from optbench.engine.blueprint import Blueprint
    from optbench.engine.transfer import check_transfer

    check_optimizers(left_of(plan))
    outlines = {}
    for name, experiment in with_readings(plan.suite).experiments.items():
        with reported(f"experiments.{name}.dataset", experiment.dataset):
            dataset = load(experiment.dataset)
        if (other := experiment.transfer) is not None:
            with reported(f"experiments.{name}.transfer", other), placed(f"experiments.{name}"):
                check_transfer(dataset, load(other))
        for model in experiment.models:
            blueprint = Blueprint.of(experiment, model, dataset, f"experiments.{name}.models.{model}")
            check_places(name, experiment, model, blueprint, unlisted(plan.suite, name))
        outlines[name] = check_tasks(name, experiment, dataset, plan.suite)
        check_metrics(name, experiment, dataset, outlines[name].count)
    return outlines


def check_optimizers(trials: Iterable[Trial]) -> None:
    """Check that the optimizers of trials can be imported and accept the names and types of their settings.

    Raises:
        OptimizerError: an optimizer cannot be imported, or does not accept its settings.
    """
    from optbench.optimizers.load import check_arguments  # late, because importing torch takes seconds
    from optbench.optimizers.make import resolve_spec

    for trial in {(t.experiment, t.optimizer, t.variant): t for t in trials}.values():
        try:
            check_arguments(trial.target, trial.hyperparameters)
            resolve_spec(trial.spec, trial.settings)
        except OptimizerError as error:
            raise OptimizerError(*(f"optimizers.{trial.optimizer}: {line}" for line in error.args)) from error


def check_penalties(suite: Suite, trials: Iterable[Trial]) -> None:
    """Check that `rank-penalty`, even with strength 0, is not used on a built-in network without hidden layers.

    Such a network's features are its inputs. This check does not load the data.

    Raises:
        UsageError: `rank-penalty` is used on such a network.
    """
    for trial in trials:
        model = suite.experiments[trial.experiment].models[trial.model]
        if "rank-penalty" in trial.around and not model.is_users and not model.settings.get("hidden", True):
            place = f"experiments.{trial.experiment}.models.{trial.model}"
            raise UsageError(f"{place}: rank-penalty: expected a model with hidden layers, got one without")


def left_of(plan: Plan) -> list[Trial]:
    """Return the remaining trials of a plan."""
    return [trial for trial in plan.trials if trial.id not in plan.done]


@contextlib.contextmanager
def placed(place: str) -> Iterator[None]:
    """Prefix the messages of UsageErrors raised in the block with `place`, a place in the suite."""
    try:
        yield
    except UsageError as error:
        raise UsageError(*(f"{place}.{line}" for line in error.args)) from error


@contextlib.contextmanager
def reported(place: str, kind: Kind) -> Iterator[None]:
    """Convert exceptions raised in the block by a user's `kind` (e.g. a model) to KindErrors.

    place: the place of `kind` in the suite, which is prefixed to the message.

    Raises:
        KindError: `kind` raised an exception or violates its contract.
    """
    try:
        yield
    except KindError as error:
        raise KindError(*(f"{place}: {line}" for line in error.args)) from error
    except Exception as error:
        if not kind.is_users or isinstance(error, OptbenchError | MemoryError):
            raise
        raise KindError(f"{place}: {kind.kind} raised {said(error)}") from error


def check_tasks(name: str, experiment: ExperimentSettings, dataset: Dataset, suite: Suite) -> Outline:
    """Check that every task has a full batch; return an outline of the tasks.

    For built-in task sequences, the dataset's pixels are replaced with zeros, to save memory.

    Raises:
        UsageError: a task has no full batch, or the settings do not fit the dataset.
        KindError: a user's task sequence raised an exception or violates its contract.
    """
    import torch

    from optbench.tasks import TaskFamily
    from optbench.tasks.examples import check_augment

    protocol = experiment.protocol
    with reported(f"experiments.{name}.tasks", experiment.tasks):
        with placed(f"experiments.{name}"):
            check_augment(protocol.augment, dataset)
            data = dataset if experiment.tasks.is_users else dataset.without_pixels()
            family = TaskFamily(experiment.tasks, data, protocol, suite.seed, torch.device("cpu"))
        sizes = list(family.train_sizes(suite.seeds))
        if experiment.tasks.is_users:  # only the first task, as an example
            family.try_first(suite.seeds[0])
    for seed, task, count in sizes:
        if count < protocol.batch_size:
            raise UsageError(
                f"experiments.{name}.protocol.batch_size: expected at most the {count} training examples of "
                f"task {task + 1} ({family.task_names[task]}, seed {seed}), got {protocol.batch_size}"
            )
    return family.outline


def check_places(
    name: str, experiment: ExperimentSettings, model: str, blueprint: Blueprint, of_claims: Iterable[MetricSettings]
) -> None:
    """Check that a model has the layers that the metrics read. of_claims: the metrics used only for claims."""
    readings = {entry.name for entry in of_claims}
    for metric in resolve(experiment.metrics):
        try:
            blueprint.tap(metric.place)
        except ValueError as error:
            place = f"experiments.{name}{': readings of claims' if metric.name in readings else '.metrics'}"
            raise UsageError(f"{place}: {metric.name}: models.{model}: {error}") from error


def check_metrics(name: str, experiment: ExperimentSettings, dataset: Dataset, tasks: int) -> None:
    """Try the users' metrics on random numbers.

    tasks: the number of tasks; 0 if unknown, in which case metrics of accuracies are not tried.

    Raises:
        UsageError: a metric raises an exception or does not return a number.
    """
    if experiment.own_metrics:
        from optbench.engine.own_metrics import try_metrics

        try:
            try_metrics(resolve(experiment.metrics), experiment, dataset, tasks)
        except UsageError as error:
            raise UsageError(f"experiments.{name}.metrics: {error}") from error


def _original(resume: Path, plugin: Plugin) -> Source:
    """Read the original file of a source that a run used, or the run's copy if that file no longer exists."""
    if not Path(plugin.origin).is_file():
        return read_copy(resume, plugin)
    return read_text_file(f"{TEXT}{plugin.origin}") if is_text(plugin.target) else read_file(plugin.origin)


def _differing(source: Source, plugin: Plugin) -> str:
    """Return the path of a file that differs from the run's record, followed by the number of further such files."""
    names = sorted({*source.sums, *plugin.files}, key=lambda name: (name != source.main, name))
    different = [name for name in names if source.sums.get(name) != plugin.files.get(name)] or [source.main]
    more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
    return f"{source.folder / different[0]}{more}"


def _changed_file(source: Source, plugin: Plugin | None) -> str:
    """Return the name of a file that differs from the run's last record; the main file's name if no file differs."""
    names = sorted(source.sums, key=lambda name: (name != source.main, name))
    return next((name for name in names if plugin and source.sums[name] != plugin.files.get(name)), source.main)


def _first_hashes(resume: Path) -> dict[str, str]:
    """Return the source hash with which the run first used each target, by the part of the target before the colon."""
    first: dict[str, str] = {}
    for entry in read_json(resume).get("plugins") or ():
        first.setdefault(entry["target"], entry["source_hash"])
    return first
