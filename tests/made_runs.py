"""A run with made-up rows in every table, computed from the ids of trials, for drawing figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from optbench.plan import Trial
from optbench.stats.results import Results
from optbench.store.tables import AccuracyRow, MetricRow, PruningRow, Row, SimilarityRow, SketchRow, SpectrumRow
from tests.online_runs import online_rows
from tests.written_runs import results_of, trial_row, write_run

SUITE = """
name: made
seeds: 3
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam}
  rates: {target: adam, lr: {log: [1.0e-4, 1.0e-1], points: 4}}
  decays: {target: adamw, weight_decay: [0.0, 0.01, 0.1]}
  switched: {target: switch, at: [0, 4, 16]}
experiments:
  permuted:
    tasks: {kind: permuted, count: 3}
    models: {narrow: {kind: mlp, hidden: [10]}, wide: {kind: mlp, hidden: [20]}}
    optimizers: [sgd, adam]
  pairs:
    tasks: {kind: class-incremental, group_size: 5}
    models: {narrow: {kind: mlp, hidden: [10]}}
    optimizers: [adam, rates]
  decay:
    tasks: {kind: permuted, count: 2}
    models: {narrow: {kind: mlp, hidden: [10]}}
    optimizers: [decays, sgd]
    figures: [{x: effective_rank, y: forgetting}]
  early:
    tasks: {kind: permuted, count: 2}
    models: {narrow: {kind: mlp, hidden: [10]}}
    optimizers: [sgd, adam, switched]
    twins: [[sgd, adam]]
"""

TASKS = {"permuted": 3, "pairs": 2, "decay": 2, "early": 2}
DIMENSIONS = 6
CLASSES = 4
CHECKPOINT = "checkpoints/made.safetensors"
"""The checkpoint of every trial."""
KEEPS = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Found:
    """The tables to fill, and the status of each trial."""

    spectra: bool = True
    similarity: bool = True
    pruning: bool = True
    sketches: bool = True
    online: bool = True
    status: Callable[[Trial], str | None] = lambda trial: "ok"
    """The status `ok`, `diverged` or `failed`, or None for an unfinished trial."""


def rows_of(trial: Trial, status: str, found: Found) -> list[Row]:
    """Return rows of every kind, computed from the id of the trial; no figure may show those of a diverged trial."""
    row = trial_row(status, "a shape is wrong" if status == "failed" else None)
    rows: list[Row] = [dataclasses.replace(row, checkpoint=CHECKPOINT)]
    if status == "failed":
        return rows
    random = np.random.default_rng(list(trial.id.encode()))
    tasks, bad = TASKS[trial.experiment], status == "diverged"
    for after, task in np.ndindex(tasks + 1, tasks):
        value = None if bad and after else float(random.uniform(0.5, 0.99))
        rows.append(AccuracyRow(after, task + 1, value, None, 100, None, None))
    for after in (1, tasks):
        rows.append(MetricRow(after, None, "features", "effective_rank", float(random.uniform(2, 6)), None))
        for task in (None, 1):
            eigenvalues = -77 if bad else np.sort(random.exponential(size=DIMENSIONS))[::-1]
            if found.spectra:
                values = np.broadcast_to(eigenvalues, DIMENSIONS).tolist()
                rows += [SpectrumRow(after, task, "features", i, value) for i, value in enumerate(values)]
        if found.similarity:
            cosine = random.uniform(0.2, 0.9, (CLASSES, CLASSES))
            cosine[np.diag_indices(CLASSES)] = 1.0
            rows += [SimilarityRow(after, "features", a, b, float(cosine[a, b])) for a, b in np.ndindex(cosine.shape)]
        if found.pruning:
            rows += [
                PruningRow(after, scope, keep, 0.9 + 0.2 * math.log10(keep) + float(random.normal(0, 0.01)))
                for scope in ("global", "layer")
                for keep in KEEPS
            ]
    if found.online and trial.experiment in ("permuted", "early"):
        learnt = random.uniform(0.5, 0.9, tasks) if not bad else np.full(tasks, np.nan)
        rows += online_rows(learnt)
    if found.sketches and trial.experiment == "early" and trial.optimizer in ("sgd", "adam"):
        start = np.random.default_rng(trial.seed).normal(size=DIMENSIONS)
        for place in ((1, 0), (1, 4), (1, 8), (2, 4), (2, 8)):
            moved = start + random.normal(size=DIMENSIONS) * (place != (1, 0)) * (np.nan if bad else 1)
            rows.append(SketchRow(*place, tuple(moved.tolist())))
    return rows


def made_run(folder: Path, suite_text: str = SUITE, found: Found | None = None, name: str = "made") -> Results:
    """Write a run directory in `folder` as `optbench run` does, and read its results."""
    chosen = found or Found()

    def results(trial: Trial) -> list[Row]:
        status = chosen.status(trial)
        return [] if status is None else rows_of(trial, status, chosen)

    path = write_run(folder, suite_text, results, name=name)
    random = np.random.default_rng(0)
    save_file({"layer.weight": random.normal(0, 0.1, (20, 30)), "layer.bias": np.full(20, 1e3)}, path / CHECKPOINT)
    return results_of(path)
