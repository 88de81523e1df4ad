"""Cost: what a trial's training took, from what the engine recorded of it.

In a cohort the members share their time: a trial's seconds are its part of the cohort's. Compare times only of one
machine, and of runs that had it to themselves. Every function is NaN where there was nothing to divide by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What was recorded of one trial.

    steps: optimizer steps over all tasks. train_seconds: in batches, gradients and updates; optimizer_seconds: of
    these, in updates. optimizer_state_bytes: all storages of the optimizer's state, each once. parameters: how many
    numbers are trained.
    """

    steps: int
    train_seconds: float
    optimizer_seconds: float
    optimizer_state_bytes: int
    parameters: int


def train_seconds(cost: Cost) -> float:
    """Seconds in batches, gradients and updates."""
    return cost.train_seconds if cost.steps else math.nan


def milliseconds_per_step(cost: Cost) -> float:
    """1000 · train_seconds / steps."""
    return 1000 * cost.train_seconds / cost.steps if cost.steps else math.nan


def optimizer_share(cost: Cost) -> float:
    """The updates' share of the training time, between 0 and 1."""
    return cost.optimizer_seconds / cost.train_seconds if cost.train_seconds else math.nan


def steps(cost: Cost) -> float:
    """Optimizer steps over all tasks; early stopping makes them differ."""
    return float(cost.steps) if cost.steps else math.nan


def state_bytes_per_parameter(cost: Cost) -> float:
    """Bytes of optimizer state for each parameter; Adam in float32 keeps 8."""
    return cost.optimizer_state_bytes / cost.parameters if cost.parameters else math.nan
