"""Metrics: pure functions that map accuracies, features and weights to numbers, and a catalog of them.

`continual` and `plasticity` work on NumPy arrays, `cost` on plain numbers, and `rank`, `similarity` and `sparsity` on
torch tensors. Modules that compute metrics are imported only when a metric is measured, so that commands that only list
metrics start fast.
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
