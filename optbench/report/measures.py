"""The measures that a report shows: how each is read from one trial's accuracy matrix or from the metrics table.

Legend: `T` tasks; an accuracy matrix has shape (T+1, T), row 0 before any training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optbench.metrics import METRICS

Matrix: TypeAlias = NDArray[np.float64]
Topic = Literal["learning", "solution"]


@dataclass(frozen=True)
class Measure:
    """One column of a report.

    title: two short lines, for a narrow column.
    arrow: `↑` or `↓` where one direction is better, empty for a neutral measure.
    decimals: digits after the point.
    of_matrix: the value from an accuracy matrix (T+1, T); None: the value is `metric` of the metrics table, taken
        after the last task, over all tasks pooled and over all layers.
    groups_only: whether it says something only where tasks have classes of their own.
    """

    name: str
    title: str
    topic: Topic
    arrow: str
    decimals: int = 3
    of_matrix: Callable[[Matrix], float] | None = None
    groups_only: bool = False


def last_task_accuracy(matrix: Matrix) -> float:
    """Accuracy at the end on the task trained last: R[T, T]. (T+1, T) -> number."""
    return float(matrix[-1, -1])


def earlier_tasks_accuracy(matrix: Matrix) -> float:
    """Mean accuracy at the end on all tasks before the last: mean_{j<T} R[T, j]; NaN where T = 1."""
    return float(matrix[-1, :-1].mean()) if matrix.shape[-1] > 1 else float("nan")


def _continual(name: str, title: str) -> Measure:
    function = METRICS[name].function()
    return Measure(name, title, "learning", _arrow(name), of_matrix=lambda matrix: float(function(matrix)))


def _metric(name: str, title: str, decimals: int = 3) -> Measure:
    return Measure(name, title, "solution", _arrow(name), decimals)


def _arrow(name: str) -> str:
    return "" if METRICS[name].direction == "neutral" else METRICS[name].arrow


MEASURES: tuple[Measure, ...] = (
    _continual("average_accuracy", "average\naccuracy"),
    _continual("forgetting", "\nforgetting"),
    _continual("learning_accuracy", "learning\naccuracy"),
    Measure("last_task", "last\ntask", "learning", "↑", of_matrix=last_task_accuracy, groups_only=True),
    Measure("earlier_tasks", "earlier\ntasks", "learning", "↑", of_matrix=earlier_tasks_accuracy, groups_only=True),
    _metric("effective_rank", "effective\nrank", decimals=1),
    _metric("class_cosine_mean", "class\ncosine"),
    _metric("hoyer", "Hoyer\nsparsity"),
    _metric("near_zero_share", "near-zero\nweights"),
    _metric("dormant_0.025", "dormant\nunits"),
)

TOPICS: dict[Topic, str] = {
    "learning": "learning and forgetting",
    "solution": "the solution: its representation and weights",
}

LEGENDS: dict[str, str] = {
    "average_accuracy": "average accuracy: test accuracy at the end, mean over all tasks",
    "forgetting": "forgetting: best accuracy on a task since it was learnt minus its accuracy at the end",
    "learning_accuracy": "learning accuracy: test accuracy on each task right after training on it",
    "last_task": "last task, earlier tasks: accuracy at the end on the last task, and mean on those before it",
    "effective_rank": "effective rank: exp of the entropy of the feature covariance's spectrum, all tasks pooled",
    "class_cosine_mean": "class cosine: mean cosine between the mean features of different classes",
    "hoyer": "Hoyer sparsity: of all weights, 0 dense to 1 sparse",
    "near_zero_share": "near-zero weights: share with |w| < .01 rms of their layer",
    "dormant_0.025": "dormant units: share whose mean |activation| is at most .025 of the layer's mean",
}


def of_metrics(measure: Measure) -> bool:
    """Whether the measure is read from the metrics table rather than derived from accuracies."""
    return measure.of_matrix is None


assert {m.name for m in MEASURES if of_metrics(m)} <= set(METRICS), "a report shows a metric that nobody measures"
