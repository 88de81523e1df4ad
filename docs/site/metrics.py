"""Generate the metrics reference from the catalog."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from docs.site.described import code, table
from docs.site.types import default, in_words
from optbench.metrics.catalog import METRICS, PRIMARY_METRICS, UNSET
from optbench.metrics.metric import Metric
from optbench.metrics.own import METRIC_KINDS

SUBJECTS = {
    "continual": (
        "Continual learning",
        "Computed from the accuracy matrix R of T tasks: R[i,j] is the accuracy on task j after task i, and row 0 is "
        "before any training. For text, R is negative bits per byte.",
    ),
    "plasticity": (
        "Plasticity",
        "Computed from the online accuracy a of each task: the accuracy on each batch just before the update on it.",
    ),
    "rank": (
        "Rank",
        "Computed from features F (N examples × d), with σ the singular values of F and λ the eigenvalues of their "
        "centred covariance, or from the singular values of a layer's weights. Features are the inputs of the last "
        "linear layer on test data, or those of [any layer](../readings.md).",
    ),
    "sparsity": ("Sparsity", "Computed from weights w (without biases and normalisation) or activations h."),
    "similarity": ("Similarity of classes", "Computed from the features of each class."),
    "prediction": ("Prediction", "Computed from the outputs of the final network on test data."),
    "landscape": (
        "Loss landscape",
        "Computed from the final weights w, the initial weights w₀ and the training loss L.",
    ),
    "overlap": (
        "Overlap of tasks",
        "Computed from the features of each task, at the end or immediately after the task was learnt.",
    ),
    "collapse": (
        "Neural collapse",
        "Computed from the features of training examples of C classes, with class means μ and their mean μ_G.",
    ),
    "updates": ("Geometry of updates", "Computed from the steps Δ of each weight matrix W with gradient G."),
    "pruning": ("Pruning", "Accuracy when only the largest weights are kept, without further training."),
    "pairs": (
        "Pairs of solutions",
        "Computed from two networks with the same seed, and compared with a null: one optimizer with two data orders.",
    ),
    "transfer": ("Transfer", "Computed from the features of the final network on another dataset."),
    "reaching": ("Speed", "Computed from the training curve of the last task."),
    "cost": ("Cost", "Recorded while each trial is trained."),
}
HEAD = f"""# Metrics

This page lists every metric of the catalog. ↑ means that higher is better, ↓ that lower is better, and · that the
metric is neutral: its values are higher or lower, never better. *Margin* is the smallest difference
that is worth a verdict, in the unit of the metric; 0 means that no margin is set. *Measured* says whether the metric
is in the default set or must be requested by name. Undefined values are null, with a note that gives the reason. The
default primary metrics of an experiment are {", ".join(map(code, PRIMARY_METRICS))}. To request metrics, change their
settings or bring your own, see [Metrics](../metrics.md).
"""


def page(rendered: Callable[[str], str]) -> str:
    """Return the page. rendered: converts a formula of the catalog to HTML."""
    parts = [HEAD]
    for subject in dict.fromkeys([*SUBJECTS, *(str(metric.subject) for metric in METRICS.values())]):
        title, text = SUBJECTS.get(subject, (subject.capitalize(), ""))
        found = [metric for metric in METRICS.values() if metric.subject == subject]
        rows = [_row(metric, rendered) for metric in found]
        titles = ("metric", "", "definition", "margin", "measured", "source")
        parts.append(f"## {title}\n\n{text}\n\n{table(titles, rows)}")
        parts.append(_settings(found))
    return "\n".join(parts)


def _row(metric: Metric, rendered: Callable[[str], str]) -> tuple[str, ...]:
    measured = "by default" if metric.default else f"on request{', expensive' if metric.cost == 'expensive' else ''}"
    if metric.kind == "pair":
        measured = "with `pairs`"
    return (code(metric.name), metric.arrow, rendered(metric.formula), f"{metric.margin:g}", measured, metric.source)


def _settings(metrics: list[Metric]) -> str:
    """Return a table of these metrics' settings; metrics with the same settings share a row."""
    rows: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for metric in metrics:
        if metric.kind in UNSET:
            continue
        fields = METRIC_KINDS.settings(metric.name).model_fields
        said = tuple((name, in_words(field, _no_link), default(field)) for name, field in fields.items())
        if said:
            rows.setdefault(said, []).append(metric.name)
    lines = [
        (", ".join(map(code, names)), code(name), words, standard)
        for said, names in rows.items()
        for name, words, standard in said
    ]
    return "Settings:\n\n" + table(("metric", "setting", "type", "default"), lines) if lines else ""


def _no_link(model: type[BaseModel]) -> str:
    return model.__name__
