"""What the matrix R of a task sequence holds: accuracies, or of text bits per byte with their sign turned.

Either way higher is better, and every continual metric is defined on it. Their names are those of accuracies in suites,
tables and options; what differs of text is their unit, and so the smallest difference worth a verdict.
"""

from __future__ import annotations

from dataclasses import replace

from optbench.metrics.metric import Metric

UNIT = "bits per byte"
NEGATED = f"-{UNIT}"
MARGIN = 0.02
"""Of continual metrics of text, in bits per byte: a convention, 1% of the two bits or so that a byte of English takes a
small model. How much two data orders differ by was not measured. Of accuracies the margin is .005."""


def score_word(in_bits: bool) -> str:
    """What R holds, in a sentence or on an axis."""
    return NEGATED if in_bits else "accuracy"


def metric_in_bits(metric: Metric) -> Metric:
    """A registered continual metric as it is of text; any other as it is."""
    if metric.kind != "continual" or metric.is_users:
        return metric
    difference = "accuracy" not in metric.name
    said = "" if difference else metric.name.replace("accuracy", "score").replace("_", " ")
    return replace(metric, unit=UNIT if difference else NEGATED, margin=MARGIN, said=said)
