"""A run of 30 tasks with made-up online accuracies, computed from optimizer and seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optbench.plan import Trial
from optbench.store.tables import AccuracyRow, OnlineRow, Row
from optbench.suite.scoring import scored_tasks
from tests.written_runs import trial_row, write_run

TASKS = 30
SUITE = """
name: plastic
seeds: 8
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam, lr: 0.001}
  l2-init: {target: l2-init, base: {target: adam, lr: 0.001}}
  fresh: {target: fresh-network, base: {target: adam, lr: 0.001}}
experiments:
  permuted:
    tasks: {kind: permuted, count: 30, examples_per_task: 100}
    models: {net: {kind: mlp, hidden: [10]}}
    protocol: {batch_size: 10, max_epochs: 1, early_stopping: false}
    metrics: [online_accuracy]
    primary: [online_accuracy, plasticity_kept, against_fresh]
claims:
  declines:
    text: Adam keeps less than with regularisation to its initial weights.
    experiment: permuted
    metric: plasticity_kept
    left: adam
    right: l2-init
    expect: lower
    beside: [online_accuracy, plasticity_slope]
  worse-than-new:
    text: Adam learns less in the end than a new network.
    experiment: permuted
    metric: against_fresh
    left: adam
    right: 0
    expect: lower
"""
SLOPES = {"sgd": 0.002, "adam": -0.006, "l2-init": -0.001, "fresh": 0.0}
"""Slope per task by optimizer, starting at .7; other optimizers have no online accuracies."""


def sequence(trial: Trial) -> NDArray[np.float64]:
    """Return the online accuracies (T,) of a trial."""
    noise = np.random.default_rng([trial.seed, len(trial.optimizer)]).normal(0, 0.004, TASKS)
    found: NDArray[np.float64] = 0.7 + SLOPES.get(trial.optimizer, 0.0) * np.arange(TASKS) + noise
    return found


def online_rows(accuracy: NDArray[np.float64]) -> list[Row]:
    """Return a row for each task, with null for NaN; as accuracy falls, dormant units increase and the rank falls."""
    return [
        OnlineRow(
            task=i + 1,
            steps=10,
            online_accuracy=_null(value),
            online_loss=_null(1 - value),
            dead=_null(0.5 - value / 2),
            dormant=_null(0.6 - value / 2),
            effective_rank=_null(10 * value),
            weight_magnitude=0.1,
            gradient_norm=1.0,
            examples=100,
            width=10,
            note=None,
        )
        for i, value in enumerate(accuracy.tolist())
    ]


def trial_rows(
    trial: Trial, status: str = "ok", learnt: Callable[[Trial], NDArray[np.float64]] = sequence
) -> list[Row]:
    """Return all rows of a trial that scores each task and the next; a diverged trial stops at task 12."""
    rows: list[Row] = [dataclasses.replace(trial_row(status), hyperparameters="{}")]
    for after in range(TASKS + 1):
        for task in scored_tasks("current", TASKS, after):
            value = None if status == "diverged" and after > 11 else 0.9 if task == after else 0.1
            rows.append(AccuracyRow(after, task, value, None, 100, value, None))
    accuracy = learnt(trial)
    return rows + online_rows(accuracy[:12] if status == "diverged" else accuracy)


def online_run(folder: Path, suite: str = SUITE, rows: Callable[[Trial], list[Row]] = trial_rows, **more: str) -> Path:
    """Write a run directory in `folder/runs` as `optbench run` does."""
    return write_run(folder, suite, rows, **more)


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
