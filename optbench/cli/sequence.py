"""What the tasks of an experiment are, in words."""

from __future__ import annotations

from optbench.suite.schema import ExperimentSettings


def task_summary(experiment: ExperimentSettings) -> str:
    """`permuted (permutations per-seed, first permuted)`."""
    settings = experiment.tasks.model_dump(exclude={"kind", "count"})
    details = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in settings.items())
    return f"{experiment.tasks.kind} ({details})"


def _plain(value: object) -> str:
    return ", ".join(f"{item:g}" for item in value) if isinstance(value, list) else str(value)
