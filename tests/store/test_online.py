"""Plasticity metrics of a run: derived by their functions, null with a reason, shown and judged like any metric."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import optbench
from optbench.cli.entry import main
from optbench.errors import StoreError, SuiteError
from optbench.metrics import METRICS, plasticity
from optbench.plan import Trial
from optbench.stats.claims import judge_claims
from optbench.store.tables import AccuracyRow, OnlineRow, Row
from optbench.store.values import SUMMARY
from optbench.studies.tuning.statistics import tunings
from optbench.suite import load_suite
from tests.online_runs import SUITE, TASKS, online_run, sequence, trial_rows
from tests.written_runs import results_of

ONLINE = [name for name, metric in METRICS.items() if metric.kind == "online"]
LATE = TASKS // 10


def test_every_metric_equals_its_function(tmp_path: Path) -> None:
    run = optbench.read_run(online_run(tmp_path))
    values = run.values().set_index(["trial", "metric"])["value"]
    results = results_of(run.path)
    for trial in results.trials:
        fresh = next(t for t in results.trials if t.optimizer == "fresh" and t.seed == trial.seed)
        for name in ONLINE:
            data = [sequence(trial), sequence(fresh)][: len(METRICS[name].reads)]
            found = values.get((trial.id, name), math.nan)
            if name == "against_fresh" and trial.optimizer == "sgd":
                assert math.isnan(found)
            else:
                assert found == pytest.approx(float(getattr(plasticity, name)(*data)))
    assert values.xs("against_fresh", level="metric").filter(like="/fresh/").eq(0).all()
    assert run.table("online").groupby("trial").size().eq(TASKS).all()
    means = run.summary("plasticity_slope").set_index("optimizer")["mean"]
    assert means["adam"] == pytest.approx(-0.6, abs=0.02)


def test_the_summary_gives_a_reason_for_undefined_plasticity_metrics(tmp_path: Path) -> None:
    def rows(trial: Trial) -> list[Row]:
        lost = (trial.optimizer, trial.seed) in {("adam", 0), ("fresh", 1)}
        return trial_rows(trial, "diverged" if lost else "ok")

    path = online_run(tmp_path, rows=rows)
    table = pd.read_parquet(path / "summary.parquet")
    pd.testing.assert_frame_equal(table, optbench.read_run(path).table(SUMMARY))
    found = table.set_index(["optimizer", "seed", "metric"])
    adam = found.loc["adam"]
    assert found["value"].isna().eq(found["note"].notna()).all()
    assert adam.loc[(0, "plasticity_kept"), "note"] == "the online accuracy has non-finite entries"
    assert adam.loc[(1, "against_fresh"), "note"] == "the trial with fresh networks diverged or failed"
    assert math.isfinite(adam.loc[(1, "plasticity_kept"), "value"])
    assert math.isfinite(adam.loc[(2, "against_fresh"), "value"])
    said = set(found.loc["sgd"].xs("against_fresh", level="metric")["note"])
    assert said == {"the experiment has no fresh-network with the same base optimizer and settings"}


def test_without_the_online_table_there_are_no_plasticity_metrics(tmp_path: Path) -> None:
    path = online_run(tmp_path, rows=lambda trial: [r for r in trial_rows(trial) if not isinstance(r, OnlineRow)])
    assert not (path / "online.parquet").exists()
    run = optbench.read_run(path)
    assert not set(ONLINE) & {*run.values()["metric"], *run.table(SUMMARY)["metric"]}
    assert run.table("online").empty


def test_comparisons_gates_and_claims_judge_plasticity_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = online_run(tmp_path)
    sides = [f"{path}:adam", f"{path}:l2-init"]
    assert main(["compare", *sides, "--metric", "plasticity_kept", "--format", "json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["results"]
    assert (found["verdict"], found["n"], found["primary"]) == ("worse", 8, True)
    assert main(["compare", *sides, "--fail-on", "late_online_accuracy:-0.05"]) == 1
    capsys.readouterr()
    assert [str(claim.verdict) for claim in judge_claims(results_of(path))] == ["supported", "supported"]
    verdicts = optbench.compare(path, "adam", "sgd").set_index("metric")["verdict"].dropna()
    assert verdicts.to_dict() == {
        "online_accuracy": "worse",
        "plasticity_kept": "worse",
        "against_fresh": "not comparable",
    }
    reasons = optbench.compare(path, "adam", "sgd").set_index("metric")["reason"]
    assert "on both sides: the experiment has no fresh-network with the same base" in reasons["against_fresh"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda table: table.slice(0, table.num_rows - 1),
            "expected 30 rows, for tasks 1 to 30, got 29 rows up to task 29",
        ),
        (lambda table: table.slice(1), "expected 30 rows, for tasks 1 to 30, got 29 rows up to task 30"),
        (lambda table: table.take([0, *range(table.num_rows)]), "task 1 is listed twice"),
    ],
    ids=["last missing", "first missing", "duplicate"],
)
def test_missing_or_duplicate_rows_are_refused(tmp_path: Path, change: object, said: str) -> None:
    file = online_run(tmp_path) / "online.parquet"
    assert callable(change)
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(StoreError, match=said):
        optbench.read_run(file.parent).values()


def test_one_online_metric_makes_all_available_and_none_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE)
    load_suite(file)
    file.write_text(SUITE.replace("    metrics: [online_accuracy]\n", ""))
    with pytest.raises(SuiteError, match="expected a metric that the experiment measures, got 'plasticity_kept'"):
        load_suite(file)


# Tuning

TUNED = """
name: tuned
stage: tune
seeds: [1000, 1001]
optimizers:
  adam: {target: adam, lr: [0.001, 0.01, 0.1]}
experiments:
  permuted:
    tasks: {kind: permuted, count: 30, examples_per_task: 100}
    models: {net: {kind: mlp, hidden: [10]}}
    protocol: {batch_size: 10, max_epochs: 1, early_stopping: false}
    metrics: [online_accuracy]
tune:
  experiments: {permuted: {metric: online_accuracy}}
"""


def tuned_rows(trial: Trial) -> list[Row]:
    """Return rows with the best online accuracy and the worst final accuracies at the middle learning rate."""

    def level(one: Trial) -> NDArray[np.float64]:
        return np.full(TASKS, 0.8 if one.hyperparameters["lr"] == 0.01 else 0.6)

    best = trial.hyperparameters["lr"] == 0.01
    rows = trial_rows(trial, learnt=level)
    return [
        replace(row, accuracy=0.2, validation_accuracy=0.2) if best and isinstance(row, AccuracyRow) else row
        for row in rows
    ]


def test_tuning_by_online_accuracy_ignores_learning_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = online_run(tmp_path, TUNED, tuned_rows)
    (tuned,) = tunings(results_of(path))
    assert tuned.chosen is not None
    assert (tuned.metric.name, tuned.margin) == ("online_accuracy", None)
    assert tuned.chosen.hyperparameters == {"lr": 0.01}
    assert tuned.chosen.score == pytest.approx(0.8)
    assert main(["report", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the chosen settings, on training batches before their update" in shown
    assert "highest online accuracy; values are means over 2 tuning seeds" in shown
    assert "each training batch before its update" in shown
    assert "Undefined: average accuracy, forgetting: some accuracies that the metric needs were not scored" in shown


@pytest.mark.parametrize("where", ["metric: against_fresh", "experiments: {permuted: {metric: against_fresh}}"])
def test_a_tuning_metric_that_needs_another_arm_is_refused(tmp_path: Path, where: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE + f"tune:\n  {where}\n")
    with pytest.raises(SuiteError, match=r"metric: expected a metric of accuracies .*, got against_fresh"):
        load_suite(file)
