"""Runs with made-up values whose suite has a claim over readings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from optbench.metrics.own import metric_record, resolve
from optbench.plan import Trial
from optbench.store.tables import MetricRow, Row
from optbench.suite import load_suite
from optbench.suite.measured import with_readings
from tests.written_runs import rows_of, write_run

SUITE = """\
name: read
seeds: {seeds}
optimizers: {{a: {{target: sgd, lr: {rates}}}, b: {{target: adam}}}}
experiments:
  one:
    tasks: {{kind: class-incremental, group_size: 5}}
    models: {{small: {{kind: mlp, hidden: [8]}}}}
    metrics: [hoyer]
claims:
  c:
    experiment: one
    left: a
    right: {right}
    expect: lower
    readings: {{metrics: [{metrics}], layers: {layers}, data: [{data}], primary: {{metric: {primary}}}}}
"""
MATRIX = [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]
Value = Callable[[Trial, str, str], float | None]
"""A function of trial, metric and data (`pooled` or `last`) that gives the value of the metric."""


def suite_text(
    metrics: Sequence[str],
    *,
    seeds: int = 8,
    right: str = "b",
    data: str = "pooled",
    primary: str = "",
    rates: str = "0.1",
    layers: str = "[{}]",
) -> str:
    return SUITE.format(
        seeds=seeds,
        right=right,
        data=data,
        primary=primary or metrics[0],
        metrics=", ".join(metrics),
        rates=rates,
        layers=layers,
    )


def made(
    folder: Path,
    metrics: Sequence[str],
    value: Value,
    *,
    name: str = "made",
    status: Callable[[Trial], str] = lambda trial: "ok",
    measured: Sequence[str] = (),
    start: Callable[[Trial], str] = lambda trial: str(trial.seed),
    **suite: str | int,
) -> Path:
    """Write a run of `suite_text` with these values; `hoyer` is .4 in every trial.

    measured: names of the metrics to make values for, if they are not those listed in the suite.
    """
    text = suite_text(metrics, **suite)  # type: ignore[arg-type]
    (folder / "read.yaml").write_text(text, encoding="utf-8")
    own = with_readings(load_suite(folder / "read.yaml")).experiments["one"].own_metrics.values()
    record = {"metrics": [metric_record(metric) for metric in resolve(own)]} if own else {}

    def rows(trial: Trial) -> list[Row]:
        if status(trial) == "diverged":
            return rows_of("diverged", [[0.1, 0.1], [None, None], [None, None]], {}, init_hash=start(trial))
        found = rows_of("ok", MATRIX, {"hoyer": 0.4}, init_hash=start(trial))
        for metric in measured or metrics:
            for data, task in (("pooled", None), ("last", 2)):
                given = value(trial, metric, data)
                note = None if given is not None else "undefined"
                found.append(MetricRow(2, task, "features", metric, given, note))
            found.append(MetricRow(2, 1, "features", metric, -77.0, None))
            found.append(MetricRow(1, 1, "features", metric, -77.0, None))
        return found

    return write_run(folder, text, rows, name=name, **record)
