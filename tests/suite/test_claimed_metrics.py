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


OTHERS = """
import optbench

@optbench.metric(of="weights")
def depth(weights):
    return float(len(weights))

@optbench.metric(of="weights", margin=0.5)
def judged(weights):
    return float(len(weights))
"""


TWO = """
name: claimed
seeds: 2
optimizers: {a: {target: sgd}, b: {target: adam}}
experiments:
  one: &one
    tasks: {kind: permuted, count: 2}
    models: {m: {kind: mlp, hidden: [10]}}
    metrics: [hoyer]
  two: {<<: *one, metrics: [./mine.py:size, ./mine.py:judged]}
claims:
  c: {left: a, right: b, """


def refused(folder: Path, capsys: pytest.CaptureFixture[str], claim: str) -> str:
    """Return the error about a suite with this claim, without the file's name; an empty string if there is none."""
    suite = folder / "claimed.yaml"
    suite.write_text(f"{TWO}{claim}}}\n", encoding="utf-8")
    (folder / "mine.py").write_text(MINE + OTHERS, encoding="utf-8")
    code = main(["run", str(suite), "--dry-run"])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) in ((0, 0), (2, 1)), error
    return error.removeprefix(f"optbench: {suite}:").rstrip("\n")


@pytest.mark.parametrize(
    ("metric", "entry"),
    [
        ("size", "./mine.py:size"),  # measured by the other experiment
        ("depth", "./mine.py:depth"),  # only defined
    ],
)
def test_a_claim_about_a_users_metric_that_its_experiment_does_not_measure_says_what_to_add(
    metric: str, entry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = f"expected a metric that the experiment measures, got '{metric}'; add {entry} to 'metrics'"
    error = refused(tmp_path, capsys, f"expect: lower, experiment: one, metric: {metric}")
    assert error == f"12:66: claims.c: {wanted}"
    assert not refused(tmp_path, capsys, "expect: lower, experiment: two, metric: size")
    assert "did you mean 'size'?" in refused(tmp_path, capsys, "expect: lower, experiment: one, metric: sise")


def test_a_claim_about_an_unknown_experiment_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(tmp_path, capsys, "expect: lower, experiment: tow, metric: size, beside: [judged]")
    assert "claims.c.experiment: unknown experiment 'tow'; did you mean 'two'?" in error


def test_an_equivalence_needs_a_margin_of_the_claim_or_of_the_users_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = "expect: equivalent, experiment: two, metric: "
    assert refused(tmp_path, capsys, f"{claim}size") == (
        "12:34: claims.c: expect: equivalent: expected a 'margin', got none, and size has no default margin; "
        "give 'margin' in the claim or 'margin=' in @optbench.metric"
    )
    assert not refused(tmp_path, capsys, f"{claim}size, margin: 0.1")
    assert not refused(tmp_path, capsys, f"{claim}judged")
