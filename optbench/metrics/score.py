"""The entries of a task sequence's matrix R: accuracies or, for text, negative bits per byte.

In both cases, higher is better and every continual metric is defined. For text, metrics keep their names in suites and
options, but have a different unit and therefore a different margin, and tables say "score" instead of "accuracy".
"""

from __future__ import annotations

from dataclasses import replace

from optbench.metrics.metric import Metric

UNIT = "bits per byte"
NEGATED = f"-{UNIT}"
MARGIN = 0.02
"""Margin of continual metrics of text, in bits per byte; for accuracies, the margin is .005.

By convention, it is 1% of the roughly two bits per byte that a small model needs for English. The difference between
two data orders was not measured.
"""


def score_word(in_bits: bool) -> str:
    """Return the name of R's entries, for sentences and axes."""
    return NEGATED if in_bits else "accuracy"


def metric_in_bits(metric: Metric) -> Metric:
    """Return a registered continual metric in its form for text; other metrics are returned unchanged."""
    if metric.kind != "continual" or metric.is_users:
        return metric
    difference = "accuracy" not in metric.name
    said = "" if difference else metric.name.replace("accuracy", "score").replace("_", " ")
    return replace(metric, unit=UNIT if difference else NEGATED, margin=MARGIN, said=said)
