"""One number per trial and metric: the basis of every table, report, comparison and plot.

Raw accuracies are stored; forgetting and related metrics are derived here, so that a better definition does not require
retraining.
Legend: `T` is the number of tasks; `R` is the matrix (T+1, T) of accuracies (for text, of negative bits per byte), with
row 0 before training; `K` is the number of fractions of weights kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from optbench.metrics import METRICS, Metric, continual, select
from optbench.metrics.cost import Cost
from optbench.metrics.metric import Kind, base_name
from optbench.plan import Trial
from optbench.store.columns import codes, known, numbers
from optbench.store.online import ONLINE, Online
from optbench.store.tables import KEY_COLUMNS, KEY_FIELDS, TrialRow, arrow_fields, versioned_schema
from optbench.suite.readings import Data

Matrix: TypeAlias = NDArray[np.float64]
Values: TypeAlias = dict[str, dict[str, float]]
"""metric -> trial -> final value; NaN if undefined, no entry if not measured."""

FINAL_COLUMNS = ("trial", "after_task", "task", "layer", "metric", "value")
SUMMARY = "summary"
SUMMED = ("trials", "accuracy", "metrics", "online")
"""The tables from which the summary is derived."""


@dataclass(frozen=True)
class SummaryRow:
    """One derived metric of one trial."""

    metric: str
    """Name of a metric of the kind `continual` or `online`, both of which are derived from accuracies."""
    value: float | None
    """Value of the metric; null if undefined, with the reason in the note."""
    note: str | None
    """Why the value is undefined."""


SUMMARY_SCHEMA: pa.Schema = versioned_schema([*KEY_FIELDS, *arrow_fields(SummaryRow)])


def trial_values(
    rows: Mapping[str, TrialRow],
    matrices: Mapping[str, Matrix],
    metrics: pa.Table,
    pruning: Mapping[tuple[str, str], Matrix],
    online: Online,
) -> Values:
    """Derive every value of the trials in `rows`: continual, measured, online, pruning and cost metrics.

    Diverged trials have only cost metrics, because a diverged network is not a solution. Failed trials have no values.
    """
    found = {**continual_values(matrices), **final_metrics(metrics, matrices), **pruning_values(pruning)}
    good = {trial for trial, row in rows.items() if row.status == "ok"}
    values = {name: {trial: v for trial, v in by_trial.items() if trial in good} for name, by_trial in found.items()}
    return {**values, **online.values(), **cost_values(rows)}


def accuracy_column(stages: Iterable[str]) -> str:
    """Return the accuracy column to use: the one for validation data if `stages` contains `tune`, else for test data.

    Settings must never be chosen with test data.
    """
    return "validation_accuracy" if "tune" in stages else "accuracy"


def summary_table(tables: Mapping[str, pa.Table], catalog: Mapping[str, Metric], planned: Iterable[Trial]) -> pa.Table:
    """Return the table `summary`: key columns, metric, value and note, for every trial and continual metric.

    The table includes plasticity metrics for trials whose online accuracies were recorded. An undefined value is null,
    with the reason in the note. Like every table, the summary includes controls, which are marked by their `stage`.

    tables: the tables in `SUMMED`, by name. catalog: every metric of the run, by name. planned: all planned trials.
    """
    trials, accuracy, metrics, online = (tables[name] for name in SUMMED)
    matrices = score_matrices(accuracy, accuracy_column(trials["stage"].to_pylist()))
    found = continual_values(matrices)
    measured = final_metrics(metrics, matrices)
    found |= {name: measured[name] for name in measured if name in catalog and catalog[name].kind == "continual"}
    names = trials["trial"].to_pylist()
    good = {name for name, status in zip(names, trials["status"].to_pylist(), strict=True) if status == "ok"}
    learnt = Online.of(online, {trial: matrix.shape[1] for trial, matrix in matrices.items()}, good, planned)
    online_names = [metric.name for metric in ONLINE]
    taken = {name: [*found, *(online_names if name in learnt.sequences else ())] for name in names}
    places = [(name, metric) for name in names for metric in taken[name]]
    found |= learnt.values()
    values = [found.get(metric, {}).get(name, math.nan) if name in good else math.nan for name, metric in places]
    repeated = trials.select(list(KEY_COLUMNS)).take(
        pa.array(np.repeat(np.arange(len(names)), [len(taken[name]) for name in names]))
    )
    columns = {name: repeated[name] for name in KEY_COLUMNS}
    columns |= {"metric": pa.array([metric for _, metric in places], pa.string())}
    columns |= {"value": pa.array(np.array(values, dtype=np.float64), from_pandas=True)}  # NaN is null
    notes = [
        undefined(catalog.get(metric), name, matrices, learnt) if math.isnan(value) else None
        for (name, metric), value in zip(places, values, strict=True)
    ]
    columns |= {"note": pa.array(notes, pa.string())}
    return pa.table(columns, schema=SUMMARY_SCHEMA)


def undefined(metric: Metric | None, trial: str, matrices: Mapping[str, Matrix], online: Online) -> str | None:
    """Return why a derived metric is undefined for a trial.

    Return None if it is defined, if the metric is not derived or is a user's, or if the trial has no data.
    """
    if metric is None or metric.is_users:
        return None
    if metric.kind == "online" and trial in online.sequences:
        return online.note(metric, trial)
    if metric.kind == "continual" and trial in matrices:
        return continual.note(matrices[trial], **metric.note_arguments)
    return None


def accuracy_matrices(accuracy: pa.Table, column: str = "accuracy") -> dict[str, Matrix]:
    """Return the accuracy matrix (T+1, T) of each trial, from `column` of the table `accuracy`."""
    trial, ids = codes(accuracy["trial"])
    after, task = (numbers(accuracy[name]).astype(np.int64) for name in ("after_task", "task"))
    tasks = np.zeros(len(ids), np.int64)
    np.maximum.at(tasks, trial, np.maximum(after, task))
    # Every matrix is a slice of one flat array, so that a million rows are assigned in one operation.
    starts = np.concatenate([[0], np.cumsum((tasks + 1) * tasks)])
    flat = np.full(int(starts[-1]), np.nan)
    flat[starts[trial] + after * tasks[trial] + task - 1] = numbers(accuracy[column])
    return {name: flat[starts[i] : starts[i + 1]].reshape(tasks[i] + 1, tasks[i]) for i, name in enumerate(ids)}


def in_bits(accuracy: pa.Table) -> frozenset[str]:
    """Return the ids of the trials on text: those whose R contains negative bits per byte."""
    trial, ids = codes(accuracy["trial"])
    return frozenset(ids[i] for i in np.unique(trial[np.isfinite(numbers(accuracy["bits_per_byte"]))]).tolist())


def score_columns(column: str) -> tuple[str, ...]:
    """Return the columns that `score_matrices` reads, given its argument `column`."""
    return ("trial", "after_task", "task", column, "bits_per_byte", f"{column.removesuffix('accuracy')}bits_per_byte")


def score_matrices(accuracy: pa.Table, column: str = "accuracy") -> dict[str, Matrix]:
    """Return the matrix R (T+1, T) of each trial: the accuracies in `column` or, for text, negative bits per byte."""
    found = accuracy_matrices(accuracy, column)
    if text := in_bits(accuracy):
        bits = accuracy_matrices(accuracy, score_columns(column)[-1])
        found |= {name: -bits[name] for name in text}
    return found


MEASURED_ONCE: tuple[Kind, ...] = ("landscape", "collapse", "curve")
"""Kinds of metrics that are measured only once, after the last task, and recorded for that task."""


def final_metrics(metrics: pa.Table, matrices: Mapping[str, Matrix], data: Data = "pooled") -> Values:
    """Return metric -> trial -> value after the trial's last task.

    Values that belong to a layer are left out, except those of the layer `features`.

    data: `pooled` for values on the data of all tasks together, `last` for values on the last task alone. Landscape,
        collapse and training-curve metrics are measured once, on the last task, and count as pooled.
    """
    (trial, ids), (metric, names), (layer, layers) = (codes(metrics[key]) for key in ("trial", "metric", "layer"))
    last = np.array([matrices[name].shape[1] if name in matrices else -1 for name in ids], np.int64)
    measured_once = [
        i for i, name in enumerate(names) if (m := METRICS.get(base_name(name))) and m.kind in MEASURED_ONCE
    ]
    task, once = numbers(metrics["task"]), np.isin(metric, measured_once)
    taken = np.isnan(task) | once if data == "pooled" else (task == last[trial]) & ~once
    everywhere = (layer < 0) | np.isin(layer, [i for i, name in enumerate(layers) if name == "features"])
    wanted = np.flatnonzero(taken & everywhere & (numbers(metrics["after_task"]) == last[trial]))
    found: Values = {name: {} for name in names}
    values = numbers(metrics["value"])[wanted].tolist()
    for t, m, value in zip(trial[wanted].tolist(), metric[wanted].tolist(), values, strict=True):
        found[names[m]][ids[t]] = value
    return {name: by_trial for name, by_trial in found.items() if by_trial}


def lower_bounds(metrics: pa.Table) -> dict[str, dict[str, str]]:
    """Return metric -> trial -> remark, for each value of a training-curve metric that is only a lower bound.

    metrics: the columns trial, metric, value and note of the table `metrics`.
    """
    metric, names = codes(metrics["metric"])
    wanted = [i for i, name in enumerate(names) if (m := METRICS.get(base_name(name))) and m.kind == "curve"]
    rows = np.flatnonzero(np.isin(metric, wanted) & known(metrics["value"]) & known(metrics["note"]))
    if not len(rows):
        return {}
    (trial, ids), (note, notes) = codes(metrics["trial"]), codes(metrics["note"])
    found: dict[str, dict[str, str]] = {}
    for row in rows.tolist():
        found.setdefault(names[metric[row]], {})[ids[trial[row]]] = notes[note[row]]
    return found


def pruning_curves(pruning: pa.Table, matrices: Mapping[str, Matrix]) -> dict[tuple[str, str], Matrix]:
    """Return (trial, scope) -> pruning curve (K, 2) after the last task.

    The columns of a curve are the fraction kept, in ascending order, and the accuracy, with NaN for null.
    """
    (trial, ids), (scope, scopes) = codes(pruning["trial"]), codes(pruning["scope"])
    last = np.array([matrices[name].shape[1] if name in matrices else -1 for name in ids], np.int64)
    keep, accuracy = numbers(pruning["keep"]), numbers(pruning["accuracy"])
    wanted = np.flatnonzero(numbers(pruning["after_task"]) == last[trial])
    wanted = wanted[np.lexsort((keep[wanted], scope[wanted], trial[wanted]))]
    points = np.column_stack([trial[wanted], scope[wanted], keep[wanted]])
    wanted = wanted[np.append((points[1:] != points[:-1]).any(axis=1), True)[: len(wanted)]]  # last of duplicates
    places, starts = np.unique(np.column_stack([trial[wanted], scope[wanted]]), axis=0, return_index=True)
    curves = np.split(np.column_stack([keep[wanted], accuracy[wanted]]), starts[1:])
    return {(ids[t], scopes[s]): curve for (t, s), curve in zip(places.tolist(), curves, strict=False)}


def pruning_values(curves: Mapping[tuple[str, str], Matrix]) -> Values:
    """Return the metrics of every pruning curve, computing curves with the same scope and fractions together."""
    alike: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for (trial, scope), curve in curves.items():
        alike.setdefault((scope, tuple(curve[:, 0].tolist())), []).append(trial)
    found: Values = {}
    for (scope, keep), group in alike.items():
        accuracy = np.stack([curves[trial, scope][:, 1] for trial in group])
        for metric in METRICS.values():
            if metric.kind == "pruning" and metric.scope == scope:
                values = metric.function()(1.0 - np.array(keep), accuracy).tolist()
                found.setdefault(metric.name, {}).update(zip(group, values, strict=True))
    return found


def continual_values(matrices: Mapping[str, Matrix]) -> Values:
    """Return the continual metrics of every matrix, computing trials with equal numbers of tasks together."""
    by_tasks: dict[int, list[str]] = {}
    for trial, matrix in matrices.items():
        by_tasks.setdefault(matrix.shape[1], []).append(trial)
    found: Values = {}
    for group in by_tasks.values():
        stacked = np.stack([matrices[trial] for trial in group])
        for metric in select(None, "continual"):
            values = metric.function()(stacked).tolist()
            found.setdefault(metric.name, {}).update(zip(group, values, strict=True))
    return found


def cost_values(rows: Mapping[str, TrialRow]) -> Values:
    costs = {
        trial: Cost(row.steps, row.train_seconds, row.optimizer_seconds, row.optimizer_state_bytes, row.parameters)
        for trial, row in rows.items()
        if row.status != "failed"
    }
    return {
        metric.name: {trial: metric.function()(cost) for trial, cost in costs.items()}
        for metric in METRICS.values()
        if metric.kind == "cost"
    }
