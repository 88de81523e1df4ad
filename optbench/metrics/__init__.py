"""Metrics: pure functions from accuracies, features and weights to numbers, and their catalog.

`continual` and `plasticity` work on NumPy arrays, `cost` on plain numbers; `rank`, `similarity` and `sparsity` on torch
tensors. Only the catalog and `measuring` are imported here; they import the others only when measuring, so that listing
metrics starts fast.
"""

from optbench.metrics.catalog import (
    DEFAULT_METRICS,
    METRICS,
    METRICS_VERSION,
    PAIR_METRICS,
    PRIMARY_METRICS,
    select,
)
from optbench.metrics.measuring import Measurement, measurement, take
from optbench.metrics.metric import Direction, Metric

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "METRICS_VERSION",
    "PAIR_METRICS",
    "PRIMARY_METRICS",
    "Direction",
    "Measurement",
    "Metric",
    "measurement",
    "select",
    "take",
]
