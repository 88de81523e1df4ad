"""`summary.parquet` has every continual metric of every trial, derived as in reports."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.store.tables import KEY_COLUMNS, SCHEMA_VERSION, VERSION_KEY
from tests.conftest import report, run_file

pytestmark = pytest.mark.usefixtures("_train_here")

SUITE = """
name: summed
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.1}
  wild: {target: sgd, lr: 1e30}
experiments:
  small:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [8]}}
    protocol: {batch_size: 32, max_steps: 4, validation_examples: 100, train_examples: 200, test_examples: 100}
    pairs: {against: [sgd], controls: [sgd], metrics: [linear_cka]}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_file(tmp_path_factory.mktemp("summary"), SUITE)


def test_the_summary_has_every_trial_and_continual_metric(path: Path) -> None:
    table, trials = pd.read_parquet(path / "summary.parquet"), pd.read_parquet(path / "trials.parquet")
    assert (pq.read_schema(path / "summary.parquet").metadata or {})[VERSION_KEY.encode()] == b"%d" % SCHEMA_VERSION
    assert list(table.columns) == [*KEY_COLUMNS, "metric", "value", "note"]
    assert list(dict.fromkeys(table["trial"])) == list(trials["trial"])
    assert set(table["metric"]) >= {"average_accuracy", "forgetting", "forward_transfer"}
    assert len(table) == len(trials) * table["metric"].nunique()
    assert set(table["stage"]) == {"eval", "control"}
    diverged = set(trials.loc[trials["status"] == "diverged", "trial"])
    assert diverged
    assert table["value"].isna().tolist() == [trial in diverged for trial in table["trial"]]
    results = read_results(read_run(path))
    for row in table.itertuples():
        derived = results.every_value[row.metric].get(row.trial, math.nan)
        assert row.value == derived or (math.isnan(row.value) and math.isnan(derived))


def test_the_summary_without_controls_agrees_with_the_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_parquet(path / "summary.parquet")
    found = table[(table["stage"] == "eval") & (table["optimizer"] == "sgd")].groupby("metric")["value"]
    said = {
        row["metric"]: row for row in json.loads(report(path, "json", capsys))["results"] if row["optimizer"] == "sgd"
    }
    for metric, values in found:
        assert sorted(values) == [said[metric]["min"], said[metric]["max"]]


def test_a_run_without_a_summary_gives_the_same_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = report(path, "json", capsys)
    (path / "summary.parquet").rename(path / "aside")
    try:
        assert report(path, "json", capsys) == before
    finally:
        (path / "aside").rename(path / "summary.parquet")


def test_every_finished_trial_has_a_value_of_every_metric(path: Path) -> None:
    results = read_results(read_run(path))
    with_controls, found = list(results.trial_values(controls=True)), list(results.trial_values())
    assert found == [value for value in with_controls if not value.trial.is_control] != with_controls
    by_trial = {one.trial.id: [v.metric for v in with_controls if v.trial == one.trial] for one in with_controls}
    assert list(by_trial) == [trial.id for trial in (*results.trials, *results.controls)]
    assert len({tuple(metrics) for metrics in by_trial.values()}) == 1
    for one in found:
        known = results.values[one.metric].get(one.trial.id)
        assert one.value == known or (math.isnan(one.value) and (one.status == "diverged" or math.isnan(known or 0)))
