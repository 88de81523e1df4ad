"""The columns of a report's tables: metrics and their titles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from optbench.metrics import METRICS, Metric
from optbench.report.numbers import words

Topic = Literal["learning", "solution", "pruning", "cost"]


@dataclass(frozen=True)
class Measure:
    """A column of a report's tables.

    name: the name of the metric.
    title: the text above the column, in two short lines to keep the column narrow.
    groups_only: whether the metric is meaningful only if tasks have different classes.
    own: the metric itself if the catalog does not define it (a user's metric, or a metric with settings) or if its unit
    differs for text; else None.
    """

    name: str
    title: str
    topic: Topic
    groups_only: bool = False
    own: Metric | None = None

    @property
    def metric(self) -> Metric:
        return self.own or METRICS[self.name]

    @property
    def arrow(self) -> str:
        """`↑` or `↓` if one direction is better; empty for a neutral metric."""
        return "" if self.metric.direction == "neutral" else self.metric.arrow


PRUNED = {
    "pruned_accuracy_1": "100%\nkept",
    "pruned_accuracy_0.1": "10%\nkept",
    "pruned_accuracy_0.05": "5%\nkept",
    "pruned_accuracy_0.02": "2%\nkept",
    "pruning_area": "area\nunder it",
    "holding_sparsity": "99% holds\nto sparsity",
}
"""The titles of pruning metrics, by name without scope. A table has one row per scope."""

MEASURES: tuple[Measure, ...] = (
    Measure("average_accuracy", "average\naccuracy", "learning"),
    Measure("forgetting", "\nforgetting", "learning"),
    Measure("learning_accuracy", "learning\naccuracy", "learning"),
    Measure("last_task_accuracy", "last\ntask", "learning", groups_only=True),
    Measure("earlier_tasks_accuracy", "earlier\ntasks", "learning", groups_only=True),
    Measure("online_accuracy", "online\naccuracy", "learning"),
    Measure("effective_rank", "effective\nrank", "solution"),
    Measure("class_cosine_mean", "class\ncosine", "solution"),
    Measure("hoyer", "Hoyer\nsparsity", "solution"),
    Measure("near_zero_share", "near-zero\nweights", "solution"),
    Measure("dormant_0.025", "dormant\nunits", "solution"),
    *(Measure(f"{name}_{scope}", title, "pruning") for scope in ("global", "layer") for name, title in PRUNED.items()),
    Measure("train_seconds", "\nseconds", "cost"),
    Measure("milliseconds_per_step", "ms per\nstep", "cost"),
    Measure("optimizer_share", "optimizer's\nshare", "cost"),
    Measure("steps", "\nsteps", "cost"),
    Measure("state_bytes_per_parameter", "state bytes /\nparameter", "cost"),
)

TITLES = {measure.name: measure.title for measure in MEASURES}

TOPICS: dict[Topic, str] = {
    "learning": "learning and forgetting",
    "solution": "the solution: its representation and weights",
    "pruning": "accuracy with only the largest weights kept",
    "cost": "cost",
}

OF_TEXT: dict[str, str] = {
    "average_accuracy": "average score: mean score over all tasks at the end; a score is negative bits per byte on "
    "{split} text, so higher is better",
    "forgetting": "forgetting: best score on a task between learning it and training on the last task, minus the score "
    "at the end, mean over all tasks but the last, in bits per byte; negative if the last task raises the score",
    "learning_accuracy": "learning score: mean score on each task right after training on it",
    "last_task_accuracy": "last task, earlier tasks: score on the last task and mean score on the tasks before it, at "
    "the end",
}
"""Legends for text, replacing those in `LEGENDS`."""

# {split}: the data on which accuracies are measured; pruned networks are always measured on test data.
LEGENDS: dict[str, str] = {
    "average_accuracy": "average accuracy: mean {split} accuracy over all tasks at the end",
    "forgetting": "forgetting: best accuracy on a task between learning it and training on the last task, minus the "
    "accuracy at the end, mean over all tasks but the last; negative if the last task raises the accuracy",
    "learning_accuracy": "learning accuracy: mean {split} accuracy on each task right after training on it",
    "last_task_accuracy": "last task, earlier tasks: accuracy on the last task and mean accuracy on the tasks before "
    "it, at the end",
    "online_accuracy": "online accuracy: accuracy on each training batch before training on it, mean over all tasks",
    "effective_rank": "effective rank: exp of the entropy of the spectrum of the feature covariance, all tasks pooled",
    "class_cosine_mean": "class cosine: mean cosine between the mean features of different classes",
    "hoyer": "Hoyer sparsity: of all weights, from 0 (dense) to 1 (sparse)",
    "near_zero_share": "near-zero weights: share of weights with |w| below .01 times the rms of their layer",
    "dormant_0.025": "dormant units: share of units whose mean |activation| is at most .025 times the layer's mean",
    "pruned_accuracy_1_global": "kept: test accuracy at the end, all tasks pooled, without further training, when only "
    "this share of the weights is kept: the largest of all, or of each layer (twice the share in the output layer)",
    "pruning_area_global": "area: area under the curve of accuracy against sparsity (1 - share kept), from 0 to .99",
    "holding_sparsity_global": "99% holds to: the largest sparsity up to which at least 99% of the accuracy remains",
    "train_seconds": "seconds, ms per step: a trial's share of its cohort's training time, on this machine",
}

assert {measure.name for measure in MEASURES} <= set(METRICS), "a report has a column for a metric that does not exist"


def named_measure(metric: Metric) -> Measure:
    """Return a column titled with the metric's name and unit, for a metric without an entry in `MEASURES`."""
    name = words(metric.name)
    title = name.replace(" ", "\n", 1) if " " in name else f"\n{name}"
    unit = f" ({metric.unit})" if metric.unit else ""
    own = metric if metric.target else None
    return Measure(metric.name, f"{title}{unit}", "learning" if metric.kind == "continual" else "solution", own=own)


def score_measure(measure: Measure, metric: Metric) -> Measure:
    """Return `measure` with `metric`, and with "score" instead of "accuracy" in its title.

    If `metric` is not a score on text, i.e. `metric.said` is empty, return `measure` unchanged.
    """
    return replace(measure, title=measure.title.replace("accuracy", "score"), own=metric) if metric.said else measure


def named_legend(metric: Metric) -> str:
    """Describe the metric of a `named_measure`, e.g. `margin: mean distance to the boundary (./mine.py:margin)`."""
    about = ": ".join(part for part in (words(metric.name), metric.formula) if part)
    return f"{about} ({metric.target})" if metric.target else about
