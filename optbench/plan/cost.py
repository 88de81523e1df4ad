"""How long trials take relative to each other, guessed from their settings: for the order of work and the time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optbench.data.catalog import DATASETS
from optbench.optimizers.registry import base_settings, find
from optbench.plan.trials import Trial
from optbench.suite.schema import ClassIncremental, ExperimentSettings, Permuted, Rotated


def task_count(experiment: ExperimentSettings) -> int:
    """T, the number of tasks; 0 where the dataset is not known."""
    match experiment.tasks:
        case Permuted(count=count):
            return count
        case Rotated(angles=angles):
            return len(angles)
        case ClassIncremental(group_size=size):
            info = DATASETS.get(experiment.dataset)
            return info.classes // size if info else 0


def task_classes(experiment: ExperimentSettings) -> int:
    """The number of classes among the examples of one task; 0 where the dataset is not known."""
    if isinstance(experiment.tasks, ClassIncremental):
        return experiment.tasks.group_size
    info = DATASETS.get(experiment.dataset)
    return info.classes if info else 0


def expected_cost(trial: Trial, experiment: ExperimentSettings) -> float:
    """The most steps the trial can take, an expensive optimizer's counted as several; no unit.

    Tasks that end early are not foreseen, nor is the size of the model: within an experiment they are much alike.
    """
    protocol, tasks = experiment.protocol, task_count(experiment)
    info = DATASETS.get(experiment.dataset)
    examples = protocol.train_examples or (info.train_size if info else 1)
    per_task = examples / tasks if isinstance(experiment.tasks, ClassIncremental) and tasks else examples
    steps = max(1.0, protocol.max_epochs * per_task / protocol.batch_size)
    steps = min(steps, protocol.max_steps or steps)
    return tasks * steps * step_cost(trial.target, trial.hyperparameters)


def step_cost(target: str, hyperparameters: Mapping[str, Any]) -> float:
    """A step of an optimizer in steps of SGD; of a wrapper with its base's, of a switch with the mean of both."""
    spec = find(target)
    inside = [
        step_cost(*base_settings(target, hyperparameters[name]))
        for name, hyper in spec.hyperparameters.items()
        if hyper.kind == "optimizer"
    ]
    return spec.step_cost + (sum(inside) / len(inside) if inside else 0.0)
