"""A claim about a metric that its experiment does not measure is refused before training."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli import main

SUITE = """
name: claimed
seeds: 2
optimizers: {{a: {{target: sgd}}, b: {{target: adam}}}}
experiments:
  one:
    tasks: {{kind: permuted, count: 2}}
    models: {{m: {{kind: mlp, hidden: [10]}}}}
    metrics: {metrics}
claims:
  c: {{experiment: one, metric: {metric}, left: a, right: b, expect: lower{more}}}
"""
MINE = """
import optbench

@optbench.metric(of="weights")
def size(weights):
    return float(len(weights))
"""


@pytest.mark.parametrize(
    ("metrics", "metric", "more", "place", "column"),
    [
        ("[hoyer]", "effective_rank", "", "claims.c", 32),
        ("[hoyer]", "forgetting", ", beside: [srank]", "claims.c.beside", 87),
        ("[hoyer]", "forgetting", ", where: {kurtosis: {above: 1}}", "claims.c.where", 86),
        ("[hoyer]", "pruning_area_global", "", "claims.c", 32),
        ("['./mine.py:size']", "effective_rank", "", "claims.c", 32),
        ("[{kind: srank, delta: .1}]", "effective_rank", "", "claims.c", 32),
        ("[{kind: srank, delta: .1}]", "srank", "", "claims.c", 32),
    ],
)
def test_a_claim_about_an_unmeasured_metric_is_refused(
    metrics: str, metric: str, more: str, place: str, column: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "claimed.yaml"
    suite.write_text(SUITE.format(metrics=metrics, metric=metric, more=more), encoding="utf-8")
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    assert main(["run", str(suite), "--dry-run"]) == 2
    name = more.partition("[")[2].partition("]")[0] or more.partition("where: {")[2].partition(":")[0] or metric
    wanted = f"expected a metric that the experiment measures, got '{name}'; add it to 'metrics'"
    assert capsys.readouterr().err == f"optbench: {suite}:11:{column}: {place}: {wanted}\n"


@pytest.mark.parametrize(
    ("metrics", "metric"),
    [
        ("[hoyer]", "hoyer"),
        ("[hoyer]", "forgetting"),
        ("[hoyer]", "steps"),
        ("null", "effective_rank"),
        ("[default, kurtosis]", "effective_rank"),
        ("[pruned_accuracy_1_global]", "pruning_area_layer"),
    ],
)
def test_claims_about_measured_or_derived_metrics_are_accepted(metrics: str, metric: str, tmp_path: Path) -> None:
    suite = tmp_path / "claimed.yaml"
    suite.write_text(SUITE.format(metrics=metrics, metric=metric, more=""), encoding="utf-8")
    assert main(["run", str(suite), "--dry-run"]) == 0
