"""How many tasks an experiment has, and what they are, in words: from its settings alone, without its data."""

from __future__ import annotations

from optbench.data.catalog import DATASETS
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


def task_summary(experiment: ExperimentSettings) -> str:
    """`permuted (permutations per-seed, first permuted)`."""
    settings = experiment.tasks.model_dump(exclude={"kind", "count"})
    details = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in settings.items())
    return f"{experiment.tasks.kind} ({details})"


def _plain(value: object) -> str:
    return ", ".join(f"{item:g}" for item in value) if isinstance(value, list) else str(value)
