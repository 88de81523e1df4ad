"""Run directories with chosen values, written by the writer of `optbench run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.metrics import METRICS_VERSION
from optbench.plan import Trial, cohorts, complete, trials
from optbench.stats.results import Results, read_results
from optbench.store import RunWriter, read_run
from optbench.store.tables import AccuracyRow, MetricRow, Row, TrialRow
from optbench.suite import dump_suite, load_suite, suite_hash

PROVENANCE = {"device": "cpu", "torch": "2.13.0", "optbench": "0.1.0", "python": "3.11", "cpu": "made", "cores": 2}

# A worked example with average accuracy .7, forgetting .275 and learning accuracy .8667
EXAMPLE = [[0.1, 0.1, 0.1], [0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.5, 0.7, 0.9]]
METRICS = {"effective_rank": 20.0, "class_cosine_mean": 0.3, "hoyer": 0.4, "near_zero_share": 0.01}


def trial_row(status: str = "ok", error: str | None = None, init_hash: str = "0") -> TrialRow:
    return TrialRow(
        status=status,
        error_type="RuntimeError" if error else None,
        error_message=error,
        last_step=10,
        steps=10,
        parameters=100,
        device="cpu",
        hyperparameters="{}",
        init_hash=init_hash,
        train_seconds=1.0,
        optimizer_seconds=0.5,
        optimizer_state_bytes=800,
        checkpoint=None,
        fallbacks=0,
        note=None,
    )


def rows_of(
    status: str = "ok",
    matrix: Sequence[Sequence[float | None]] = EXAMPLE,
    metrics: Mapping[str, float | None] = METRICS,
    init_hash: str = "0",
) -> list[Row]:
    """Return all rows of a trial; a failed one has only its row in `trials`."""
    rows: list[Row] = [trial_row(status, "a shape is wrong" if status == "failed" else None, init_hash)]
    if status == "failed":
        return rows
    tasks = len(matrix[0])
    for after_task, line in enumerate(matrix):
        for task, accuracy in enumerate(line, start=1):
            rows.append(AccuracyRow(after_task, task, accuracy, None, 100, None, None))
    for name, value in metrics.items():
        layer = None if name in ("hoyer", "near_zero_share") else "features"
        rows.append(MetricRow(tasks, None, layer, name, value, None if value is not None else "undefined"))
        # Rows that a report must not use: of another layer, another task, or an earlier time.
        rows.append(MetricRow(tasks, None, "hidden.0.weight", name, -77.0, None))
        rows.append(MetricRow(tasks, 1, layer, name, -77.0, None))
        rows.append(MetricRow(1, None, layer, name, -77.0, None))
    return rows


def shifted(by: float, matrix: Sequence[Sequence[float]] = EXAMPLE) -> list[list[float]]:
    return [[value + by for value in line] for line in matrix]


def write_run(
    folder: Path,
    suite: str,
    results: Callable[[Trial], Sequence[Row]],
    *,
    name: str = "made",
    status: str = "complete",
    **record: Any,
) -> Path:
    """Write a run directory `folder/runs/<name>` as `optbench run` does. A trial without rows is unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.yaml"
    source.write_text(suite, encoding="utf-8")
    made = complete(load_suite(source))
    planned = trials(made)
    header = {
        "run": name,
        "suite": made.name,
        "suite_hash": suite_hash(made),
        "metrics_version": METRICS_VERSION,
        "seeds": made.seeds,
        "command": ["optbench", "run", f"{name}.yaml"],
        "provenance": PROVENANCE,
    }
    writer = RunWriter.create(folder / "runs" / name, dump_suite(made), {**header, **record}, planned)
    for cohort in cohorts(planned):
        found = [(trial, row) for trial in cohort.trials for row in results(trial)]
        if found:
            writer.add(cohort, found)
    writer.finish(status)
    return writer.path


def results_of(path: Path) -> Results:
    return read_results(read_run(path))
