"""Estimates of trials' relative cost from their settings, used for scheduling and to predict the remaining time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optbench.data.catalog import TEXT_DOMAINS
from optbench.optimizers.registry import base_settings, find
from optbench.plan.trials import Trial
from optbench.suite.schema import ExperimentSettings
from optbench.tasks import Outline, outline_of


def outline(experiment: ExperimentSettings) -> Outline:
    """Return the outline of an experiment's tasks without loading data or executing a user's code.

    The outline is empty if it cannot be determined in this way.
    """
    if experiment.tasks.is_users:
        return Outline()
    if domains := experiment.dataset.domains:  # only the names are certain: the vocabulary may depend on the texts
        return outline_of(experiment.tasks, TEXT_DOMAINS.classes, domains)
    known = experiment.dataset.known
    return outline_of(experiment.tasks, known.classes if known else 0)


def expected_cost(trial: Trial, experiment: ExperimentSettings, tasks: Outline) -> float:
    """Return a trial's expected cost (unitless): its number of steps times the optimizer's cost per step.

    Early stopping and the size of the model are ignored.
    """
    protocol, count = experiment.protocol, max(1, tasks.count)
    known = (dataset.known for dataset in experiment.dataset.chain)  # a derived dataset is no larger than its base
    examples = protocol.train_examples or next((one.train_size for one in known if one and one.train_size), 1)
    drawn = None if experiment.tasks.is_users else _drawn(experiment)
    per_task = drawn or (examples / count if tasks.disjoint else examples)
    steps = max(1.0, protocol.max_epochs * per_task / protocol.batch_size)
    steps = min(steps, protocol.max_steps or steps)
    return count * steps * step_cost(trial.target, trial.hyperparameters)


def _drawn(experiment: ExperimentSettings) -> int | None:
    """Return the number of examples drawn for each task; None if tasks use all of their examples."""
    settings = experiment.tasks.settings
    tokens, context = settings.get("tokens_per_task"), experiment.dataset.settings.get("context")
    drawn: int | None = tokens // context if tokens and context else settings.get("examples_per_task")
    return drawn


def step_cost(target: str, hyperparameters: Mapping[str, Any]) -> float:
    """Return the cost of one step of an optimizer, relative to one step of SGD.

    A wrapper's cost includes the cost of its base. A switch's cost includes the mean cost of its two optimizers.
    """
    spec = find(target)
    inside = [
        step_cost(*base_settings(target, hyperparameters[name]))
        for name, hyper in spec.hyperparameters.items()
        if hyper.kind == "optimizer"
    ]
    return spec.step_cost + (sum(inside) / len(inside) if inside else 0.0)
