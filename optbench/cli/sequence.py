"""What the tasks of an experiment are, in words."""

from __future__ import annotations

from optbench.suite.schema import ExperimentSettings


def task_summary(experiment: ExperimentSettings) -> str:
    """`permuted (permutations per-seed, first permuted)`."""
    settings = {key: value for key, value in experiment.tasks.settings.items() if key != "count"}
    details = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in settings.items())
    return f"{experiment.tasks.kind} ({details})" if details else experiment.tasks.kind


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
