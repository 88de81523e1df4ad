"""Cost of a trial's training, from the engine's records.

Members of a cohort are trained together, so a trial's seconds are its share of the cohort's seconds. Times are
comparable only between runs on the same machine with no other load. Every function returns NaN instead of dividing by
zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """The recorded cost of one trial.

    steps: optimizer steps over all tasks.
    train_seconds: seconds spent on batches, gradients and updates. optimizer_seconds: seconds spent on updates alone.
    optimizer_state_bytes: size of all storages in the optimizer's state, each counted once.
    parameters: the number of trainable parameters.
    """

    steps: int
    train_seconds: float
    optimizer_seconds: float
    optimizer_state_bytes: int
    parameters: int


def train_seconds(cost: Cost) -> float:
    """Return the seconds spent on batches, gradients and updates."""
    return cost.train_seconds if cost.steps else math.nan


def milliseconds_per_step(cost: Cost) -> float:
    """Return 1000 · train_seconds / steps."""
    return 1000 * cost.train_seconds / cost.steps if cost.steps else math.nan


def optimizer_share(cost: Cost) -> float:
    """Return the share of training time spent on updates, between 0 and 1."""
    return cost.optimizer_seconds / cost.train_seconds if cost.train_seconds else math.nan


def steps(cost: Cost) -> float:
    """Return the number of optimizer steps over all tasks, which varies with early stopping."""
    return float(cost.steps) if cost.steps else math.nan


def state_bytes_per_parameter(cost: Cost) -> float:
    """Return the bytes of optimizer state per parameter; 8 for Adam in float32."""
    return cost.optimizer_state_bytes / cost.parameters if cost.parameters else math.nan
