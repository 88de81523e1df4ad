"""Networks with many dormant units are listed separately where ranks are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.plan import Trial
from optbench.stats.arms import arms
from optbench.stats.dormant import ManyDormant, is_rank
from optbench.store.tables import MetricRow, Row
from tests.conftest import report
from tests.written_runs import METRICS, results_of, rows_of, write_run

SUITE = """
name: dormant
seeds: 7
optimizers:
  sgd: {target: sgd, lr: 0.1}
  some: {target: sgd, lr: 0.1}
  dead: {target: sgd, lr: 0.1}
experiments:
  one:
    tasks: {kind: permuted, count: 3}
    models: {m: {kind: mlp}}
    metrics: [default]
claims:
  rank: {experiment: one, metric: effective_rank, left: some, right: sgd, expect: lower}
  forgets: {experiment: one, metric: forgetting, left: dead, right: sgd, expect: lower}
"""


def made(folder: Path, metrics: Sequence[str] = tuple(METRICS)) -> Path:
    def rows(trial: Trial) -> list[Row]:
        share = {"sgd": 0.05, "some": 0.06 + 0.01 * trial.seed if trial.seed in (2, 5) else 0.01, "dead": 0.4}
        found = rows_of("ok", metrics={name: METRICS[name] for name in metrics})
        return [*found, MetricRow(3, None, "features", "dormant_0.025", share[trial.optimizer], None)]

    return write_run(folder, SUITE, rows)


def test_trials_with_many_dormant_units_are_found_for_every_arm(tmp_path: Path) -> None:
    found = {arm.optimizer: arm.many_dormant for arm in arms(results_of(made(tmp_path)))}
    assert found["sgd"] is None, "5% is not more than 5%"
    assert found["some"] == ManyDormant(7, (2, 5), (0.08, 0.11))
    assert str(found["some"]) == "2 of 7 trials, seeds 2, 5: 8% to 11%"
    assert str(found["dead"]) == "7 of 7 trials: 40%"
    assert str(ManyDormant(7, (0, 1, 2, 5), (0.08,) * 4)) == "4 of 7 trials, seeds 0-2, 5: 8%"


def test_a_report_lists_networks_with_many_dormant_units_below_table_and_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = " ".join(report(made(tmp_path), "markdown", capsys).split())
    some, dead = "2 of 7 trials, seeds 2, 5: 8% to 11%", "7 of 7 trials: 40%"
    why = "Inactive units lower a rank."
    assert f"‡ More than 5% of units dormant: some, {some}; dead, {dead}. {why}" in shown
    assert f"‡ More than 5% of units dormant: claim 1, m, some: {some}. {why}" in shown, (
        "a claim on forgetting is not marked"
    )
    assert r"\textdaggerdbl{} More than 5" in report(made(tmp_path / "again"), "latex", capsys)
    records = json.loads(report(tmp_path / "runs" / "made", "json", capsys))["results"]
    assert {(row["optimizer"], row["many_dormant"]) for row in records} == {("sgd", 0), ("some", 2), ("dead", 7)}


def test_a_comparison_of_ranks_lists_networks_with_many_dormant_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path)
    for metric, told in (("effective_rank", True), ("forgetting", False)):
        assert main(["compare", f"{path}:some", f"{path}:sgd", "--metric", metric]) == 0
        assert ("A (some), 2 of 7 trials" in " ".join(capsys.readouterr().out.split())) is told


def test_without_ranks_dormant_units_are_not_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(
        tmp_path,
        SUITE.partition("claims:")[0],
        lambda trial: [
            *rows_of("ok", metrics={"hoyer": 0.4}),
            MetricRow(3, None, "features", "dormant_0.025", 0.4, None),
        ],
    )
    assert "‡" not in report(path, "markdown", capsys)


def test_ranks_are_recognised_with_settings() -> None:
    assert all(map(is_rank, ("effective_rank", "srank delta=0.05", "stable_rank activation=before")))
    others = ("features_d", "features_n activation=before", "weight_effective_rank", "weight_stable_rank", "forgetting")
    assert not any(map(is_rank, (*others, "mine", "dormant_0.025")))
