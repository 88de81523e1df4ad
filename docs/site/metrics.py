"""Reference of the metrics, from the catalog."""

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
        "Of the accuracy matrix R: R[i,j] is the accuracy on task j after task i, row 0 before any training; T tasks. "
        "For text, R is negative bits per byte.",
    ),
    "plasticity": ("Plasticity", "Of the online accuracy a of each task: on every batch before the update on it."),
    "rank": (
        "Rank",
        "Of features F (N examples × d), σ the singular values of F, λ the eigenvalues of their centred covariance; or "
        "of the singular values of a layer's weights. Features are the input of the last linear layer on test data, or "
        "those of [any layer](../readings.md).",
    ),
    "sparsity": ("Sparsity", "Of weights w (biases and normalisation aside) and of activations h."),
    "similarity": ("Similarity of classes", "Of features, by class."),
    "prediction": ("Prediction", "Of the final network's outputs on test data."),
    "landscape": ("Loss landscape", "Of the final weights, the initial ones w₀ and the training loss L."),
    "overlap": ("Overlap of tasks", "Of the features that each task has at the end, or had right after it was learnt."),
    "collapse": ("Neural collapse", "Of features of training examples, with C classes; class means μ, their mean μ_G."),
    "updates": ("Geometry of updates", "Of the steps Δ of each weight matrix W with gradient G."),
    "pruning": ("Pruning", "Accuracy with only the largest weights kept, with no further training."),
    "pairs": ("Pairs of solutions", "Of two networks of one seed, next to the null: one optimizer in two data orders."),
    "transfer": ("Transfer", "Of the final network's features, on another dataset."),
    "reaching": ("Speed", "Of the curve of the last task."),
    "cost": ("Cost", "Of a trial's record of its own training."),
}
HEAD = f"""# Metrics

Every metric of the catalog. ↑ higher is better, ↓ lower is better, · neutral: a neutral metric is called higher or
lower, never better. *Margin* is the smallest difference worth a verdict, in the metric's own unit; 0: none is set.
*Taken*: in the default set, or on request, by name. Undefined values are null, with a note that says why. The primary
metrics of an experiment that names none: {", ".join(map(code, PRIMARY_METRICS))}. How to ask for metrics, give them
settings and bring your own: [Metrics](../metrics.md).
"""


def page(rendered: Callable[[str], str]) -> str:
    """rendered: a formula of the catalog as HTML."""
    parts = [HEAD]
    for subject in dict.fromkeys([*SUBJECTS, *(str(metric.subject) for metric in METRICS.values())]):
        title, text = SUBJECTS.get(subject, (subject.capitalize(), ""))
        found = [metric for metric in METRICS.values() if metric.subject == subject]
        rows = [_row(metric, rendered) for metric in found]
        titles = ("metric", "", "what it is", "margin", "taken", "source")
        parts.append(f"## {title}\n\n{text}\n\n{table(titles, rows)}")
        parts.append(_settings(found))
    return "\n".join(parts)


def _row(metric: Metric, rendered: Callable[[str], str]) -> tuple[str, ...]:
    taken = "by default" if metric.default else f"on request{', expensive' if metric.cost == 'expensive' else ''}"
    if metric.kind == "pair":
        taken = "with `pairs`"
    return (code(metric.name), metric.arrow, rendered(metric.formula), f"{metric.margin:g}", taken, metric.source)


def _settings(metrics: list[Metric]) -> str:
    """Which settings these metrics take; metrics with the same ones share a line."""
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
