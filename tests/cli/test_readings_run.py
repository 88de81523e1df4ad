"""A run whose suite has a claim over readings: metrics, reports, resuming and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from optbench.cli import main
from tests.conftest import run_file
from tests.sent_runs import change_rows, copied

pytestmark = pytest.mark.usefixtures("_train_here")

SUITE = """\
name: read
seeds: 6
optimizers: {sgd: {target: sgd, lr: 0.1}, adam: {target: adam, lr: 0.003}}
experiments:
  one:
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [8]}}
    protocol: {batch_size: 32, max_epochs: 1, validation_examples: 100, train_examples: 300, test_examples: 100}
    metrics: [hoyer, './mine.py:spread']
    checkpoints: false
claims:
  ranks:
    experiment: one
    left: adam
    right: sgd
    expect: lower
    readings:
      metrics: [stable_rank, srank, './mine.py:largest']
      layers: [{}]
      data: [pooled, last]
      primary: {metric: stable_rank, data: last}
"""
MINE = """
import optbench

@optbench.metric(of="features")
def spread(features):
    return float(features.std())

@optbench.metric(of="features")
def largest(features, *, share: float = 1.0):
    return share * float(features.abs().max())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _train_here: None) -> Path:
    folder = tmp_path_factory.mktemp("read")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    return run_file(folder, SUITE)


def claims(run: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["report", str(run), "--format", "json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["claims"]
    return found


def test_readings_are_measured_and_judged_on_pooled_and_last_data(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_parquet(run / "metrics.parquet")
    assert {"hoyer", "spread", "stable_rank", "srank", "largest"} <= set(table["metric"])
    assert "effective_rank" not in set(table["metric"]), "neither list requests it"
    [claim] = claims(run, capsys)
    cells = claim["parts"][0]["readings"]["cells"]
    assert [(cell["name"], cell["data"]) for cell in cells] == [
        (metric, data) for metric in ("stable_rank", "srank", "largest") for data in ("pooled", "last")
    ]
    assert claim["parts"][0]["difference"] == cells[1]["difference"], "the primary reading is on the last task"
    final = table[table["after_task"] == 2]
    for cell in cells:
        rows = final[(final["metric"] == cell["name"]) & (final["layer"] == "features")]
        rows = rows[rows["task"].isna() if cell["data"] == "pooled" else rows["task"] == 2]
        for side, optimizer in (("median_a", "adam"), ("median_b", "sgd")):
            assert cell[side] == pytest.approx(rows[rows["optimizer"] == optimizer]["value"].median())
        assert cell["n"] == 6


def test_the_code_of_a_reading_is_copied_with_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert {metric["name"] for metric in record["metrics"]} == {"spread", "largest"}
    assert record["plugins"]
    (run.parents[1] / "mine.py").rename(run.parents[1] / "gone.py")
    try:
        assert len(claims(run, capsys)) == 1, "a report does not execute the code"
        again = ["run", str(run / "suite.yaml"), "--name", "again", "--runs-dir", str(run.parent), "--device", "cpu"]
        assert main([*again, "--jobs", "1", "--quiet"]) == 0
    finally:
        (run.parents[1] / "gone.py").rename(run.parents[1] / "mine.py")
    other = run.parent / "again"
    [first], [second] = claims(run, capsys), claims(other, capsys)
    assert first["parts"] == second["parts"]
    assert json.loads((other / "run.json").read_text(encoding="utf-8"))["suite_hash"] == record["suite_hash"]
    capsys.readouterr()
    assert main(["compare", str(run), str(other), "--metric", "stable_rank", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {(row["metric"], row["difference"]) for row in rows} == {("stable_rank", 0.0)}


def test_a_run_with_other_readings_cannot_be_resumed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished trials lack the measurements for a new reading."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    more = tmp_path / "more.yaml"
    more.write_text(SUITE.replace("srank,", "srank, pca99,"), encoding="utf-8")
    words = ["run", str(more), "--resume", str(run), "--dry-run"]
    assert main(words) == 2
    assert "this run was made from another suite" in capsys.readouterr().err
    less = tmp_path / "less.yaml"
    less.write_text(SUITE.replace("      data: [pooled, last]\n", "      data: [last]\n"), encoding="utf-8")
    assert main(["run", str(less), "--resume", str(run), "--dry-run"]) == 0, "the same metrics are measured"
    assert "12 of them already done" in capsys.readouterr().out


def test_readings_are_not_measured_if_a_side_of_the_claim_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    suite = tmp_path / "s.yaml"
    suite.write_text(SUITE.replace("seeds: 6", "seeds: 1"), encoding="utf-8")
    words = ["--optimizer", "sgd", "--runs-dir", str(tmp_path / "runs"), "--name", "one", "--device", "cpu"]
    assert main(["run", str(suite), *words, "--jobs", "1", "--quiet"]) == 0
    assert set(pd.read_parquet(tmp_path / "runs" / "one" / "metrics.parquet")["metric"]) == {"hoyer", "spread"}


def test_resuming_missing_trials_also_measures_their_readings(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    cut = copied(run, tmp_path)
    for file in cut.glob("*.parquet"):
        change_rows(
            cut, file.stem, lambda rows: rows.__setitem__(slice(None), [r for r in rows if r["optimizer"] == "sgd"])
        )
    assert set(pd.read_parquet(cut / "trials.parquet")["optimizer"]) == {"sgd"}
    words = ["run", "--resume", cut.name, "--runs-dir", str(cut.parent), "--device", "cpu", "--jobs", "1", "--quiet"]
    assert main(words) == 0
    keys = ["trial", "after_task", "task", "layer", "metric"]
    whole, resumed = (pd.read_parquet(path / "metrics.parquet").sort_values(keys) for path in (run, cut))
    pd.testing.assert_frame_equal(whole.reset_index(drop=True), resumed.reset_index(drop=True), check_exact=True)


def test_a_missing_layer_is_refused_with_its_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "s.yaml"
    text = SUITE.replace(", './mine.py:spread'", "").replace(", './mine.py:largest'", "")
    suite.write_text(text.replace("[{}]", "[{}, {layer: 3}]"), encoding="utf-8")
    assert main(["run", str(suite), "--runs-dir", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "experiments.one: readings of claims: stable_rank layer=3: models.small: " in said
