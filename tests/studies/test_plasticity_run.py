"""Plasticity of a trained run: its metrics against a plain computation, its claims, and its tuning."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pandas as pd
import pytest

import optbench
from optbench.cli.entry import main
from tests.conftest import report, run_file

pytestmark = pytest.mark.usefixtures("_train_here")

SUITE = """
name: learnt
seeds: 6
optimizers:
  sgd: {target: sgd, lr: 0.1}
  still: {target: sgd, lr: 1.0e-30}
  shrunk: {target: shrink-and-perturb, base: {target: sgd, lr: 0.1}}
  wild: {target: sgd, lr: 1.0e+30}
  fresh: {target: fresh-network, base: {target: sgd, lr: 0.1}}
experiments:
  small:
    tasks: {kind: permuted, count: 11, examples_per_task: 64}
    models: {net: {kind: mlp, hidden: [8]}}
    protocol:
      {batch_size: 16, max_epochs: 1, early_stopping: null, score: current, validation_examples: 50, test_examples: 50}
    metrics: [plasticity_kept]
    primary: [online_accuracy]
    checkpoints: false
claims:
  learns:
    experiment: small
    metric: online_accuracy
    left: sgd
    right: still
    expect: higher
    beside: [against_fresh]
  known:
    experiment: small
    metric: against_fresh
    left: fresh
    right: 0
    expect: equivalent
    margin: 0.01
tune:
  metric: online_accuracy
  seeds: [1000, 1001]
  optimizers:
    sgd: {lr: [1.0e-30, 0.1, 0.01]}
    still: {lr: [1.0e-30, 1.0e-29, 1.0e-28]}
    shrunk: {base: {lr: {of: sgd.lr}}}
    wild: {lr: {of: sgd.lr}}
    fresh: {base: {lr: {of: sgd.lr}}}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_file(tmp_path_factory.mktemp("plasticity"), SUITE)


def test_every_metric_agrees_with_a_plain_computation(path: Path) -> None:
    rows = (
        pd.read_parquet(path / "online.parquet")
        .set_index(["optimizer", "seed", "task"])["online_accuracy"]
        .sort_index()
    )
    values = optbench.read_run(path).values().set_index(["optimizer", "seed", "metric"])["value"].sort_index()
    for seed in range(6):
        of = {name: rows[name, seed].tolist() for name in ("sgd", "still", "shrunk", "fresh")}
        for name, a in of.items():
            slopes = [(a[j] - a[i]) / (j - i) for i in range(11) for j in range(i + 1, 11)]
            expected = {
                "online_accuracy": sum(a) / 11,
                "late_online_accuracy": a[-1],
                "plasticity_kept": a[-1] / max(a),
                "plasticity_slope": 100 * statistics.median(slopes),
                "against_fresh": a[-1] - of["fresh"][-1],
            }
            if name == "still":  # at another learning rate
                assert pd.isna(values[name, seed, "against_fresh"])
                del expected["against_fresh"]
            assert {metric: values[name, seed, metric] for metric in expected} == pytest.approx(expected)
    assert values["wild"].xs("online_accuracy", level="metric").isna().all()
    assert optbench.read_run(path).summary("online_accuracy").set_index("optimizer").loc["wild", "n"] == 0


def test_claims_and_comparisons_are_judged_and_reported(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(report(path, "json", capsys))
    assert {claim["claim"]: claim["verdict"] for claim in told["claims"]} == {
        "learns": "supported",
        "known": "supported",
    }
    verdicts = optbench.compare(path, "sgd", "still").set_index("metric")["verdict"]
    assert verdicts["online_accuracy"] == "better"
    assert "online accuracy over 11 tasks" in report(path, "markdown", capsys)


def test_tuning_chooses_the_learning_rate_with_the_best_online_accuracy(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = path.parent
    words = ["--runs-dir", str(runs), "--name", "tuned", "--device", "cpu", "--jobs", "1", "--quiet"]
    assert main(["tune", str(runs.parent / "made.yaml"), *words, "-o", str(runs / "tuned.yaml")]) == 0
    capsys.readouterr()
    table = pd.read_parquet(runs / "tuned" / "online.parquet")
    assert set(table["stage"]) == {"tune"}
    means = table[table["optimizer"] == "sgd"].groupby("variant")["online_accuracy"].mean()
    suite = optbench.load_suite(runs / "tuned.yaml")
    chosen = suite.optimizers["sgd"].hyperparameters["lr"]
    assert means.idxmax() == f"lr={chosen:g}"
    assert suite.optimizers["fresh"].hyperparameters["base"]["lr"] == chosen
