"""Claims about pairs of solutions: two optimizers, or one in two data orders, as a side of a claim."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import wilcoxon

from optbench.cli import main
from optbench.plan import trials
from optbench.report.claims import warnings_of
from optbench.selection import Choice, choose
from optbench.stats.claims import ClaimVerdict, JudgedClaim, judge_claims
from optbench.stats.power import suite_shortages
from optbench.stats.results import Results, read_results
from optbench.store import read_run
from optbench.suite import load_suite
from optbench.suite.claims import Bounds
from optbench.suite.sides import Arms, crossed
from tests.conftest import report, run_file
from tests.refusals import refusal

SEEDS = 6
SUITE = f"""
name: compared
seeds: {SEEDS}
optimizers:
  sgd: {{target: sgd, lr: 0.1}}
  adam: {{target: adam, lr: [3.0e-3, 3.0e-2]}}
  wild: {{target: sgd, lr: 1.0e+9}}
experiments:
  halves:
    tasks: {{kind: class-incremental, group_size: 5}}
    models: {{net: {{kind: mlp, hidden: [16]}}}}
    protocol: {{batch_size: 32, max_epochs: 1, early_stopping: null, train_examples: 640, test_examples: 100,
               validation_examples: 50}}
    metrics: [effective_rank]
    pairs: {{controls: [sgd, adam], metrics: [weight_distance, accuracy_barrier]}}
"""
CLAIMS = """
claims:
  apart: {experiment: halves, metric: weight_distance, left: [sgd, adam], right: [adam, adam], expect: higher,
          beside: [accuracy_barrier]}
  one: {experiment: halves, metric: weight_distance, left: [adam lr=0.03, sgd], right: [sgd, sgd], expect: lower}
  near: {experiment: halves, metric: accuracy_barrier, left: [sgd, sgd], right: 0, expect: equivalent, margin: 1}
  lost: {experiment: halves, metric: weight_distance, left: [sgd, wild], right: [sgd, sgd], expect: higher}
  rates: {experiment: halves, metric: weight_distance, left: [sgd, adam lr=0.003], right: [sgd, adam lr=0.03],
          expect: lower}
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_file(tmp_path_factory.mktemp("pairs"), SUITE + CLAIMS)


@pytest.fixture(scope="module")
def claims(path: Path) -> dict[str, JudgedClaim]:
    return {claim.name: claim for claim in judge_claims(read_results(read_run(path)))}


def values(path: Path, metric: str, *arms: tuple[str, str]) -> list[float]:
    """Return the values in `pairs.parquet` between two arms, or of one arm with its controls, in seed order."""
    table = pd.read_parquet(path / "pairs.parquet")
    table = table[table.metric == metric].sort_values("seed")
    sides = zip(
        zip(table.optimizer_a, table.variant_a, strict=True),
        zip(table.optimizer_b, table.variant_b, strict=True),
        strict=True,
    )
    return table.value[[set(found) == set(arms) and len(set(found)) == len(set(arms)) for found in sides]].tolist()


def test_each_part_tests_the_values_between_the_solutions(path: Path, claims: dict[str, JudgedClaim]) -> None:
    parts = claims["apart"].parts
    for part, rate in zip(parts, ("lr=0.003", "lr=0.03"), strict=True):
        left = values(path, "weight_distance", ("sgd", "default"), ("adam", rate))
        right = values(path, "weight_distance", ("adam", rate))
        assert len(left) == len(right) == part.result.n == SEEDS
        assert part.result.differences == pytest.approx([a - b for a, b in zip(left, right, strict=True)])
        assert part.result.p == pytest.approx(wilcoxon(left, right, mode="exact").pvalue)
        beside = values(path, "accuracy_barrier", ("sgd", "default"), ("adam", rate))
        assert part.beside["accuracy_barrier"][0] == pytest.approx(pd.Series(beside).median())
    assert [part.left.label for part in parts] == ["sgd with adam lr=0.003", "sgd with adam lr=0.03"]


def test_naming_one_variant_of_a_pair_gives_one_part_in_either_order(
    path: Path, claims: dict[str, JudgedClaim]
) -> None:
    [part] = claims["one"].parts
    left = values(path, "weight_distance", ("sgd", "default"), ("adam", "lr=0.03"))
    right = values(path, "weight_distance", ("sgd", "default"))
    assert part.result.differences == pytest.approx([a - b for a, b in zip(left, right, strict=True)])


def test_pairs_with_different_named_variants_are_compared(path: Path, claims: dict[str, JudgedClaim]) -> None:
    [part] = claims["rates"].parts
    left, right = (values(path, "weight_distance", ("sgd", "default"), ("adam", f"lr={lr}")) for lr in (0.003, 0.03))
    assert part.result.differences == pytest.approx([a - b for a, b in zip(left, right, strict=True)])
    assert claims["rates"].verdict is ClaimVerdict.SUPPORTED


SGD, LOW, HIGH = ("sgd", "default"), ("adam", "low"), ("adam", "high")


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (["sgd", "adam"], ["adam", "adam"], [((SGD, LOW), (LOW, LOW)), ((SGD, HIGH), (HIGH, HIGH))]),
        (["sgd", "adam low"], ["sgd", "adam high"], [((SGD, LOW), (SGD, HIGH))]),
        (["adam", "adam"], ["adam low", "adam low"], [((HIGH, HIGH), (LOW, LOW))]),
        # A pair is not compared with itself, in whatever order it is written.
        (["sgd", "adam"], ["adam low", "sgd"], [((SGD, HIGH), (LOW, SGD))]),
        (["adam low", "adam"], ["adam", "adam"], [((LOW, HIGH), (HIGH, HIGH))]),
        (["sgd", "adam"], 0.0, [((SGD, LOW), 0.0), ((SGD, HIGH), 0.0)]),
    ],
)
def test_a_name_on_both_sides_stands_for_the_same_variant(
    left: list[str], right: list[str] | float, expected: list[tuple[Arms, Arms | float]]
) -> None:
    assert crossed(left, right, [SGD, LOW, HIGH]) == expected


def test_a_null_is_compared_with_a_number(path: Path, claims: dict[str, JudgedClaim]) -> None:
    [part] = claims["near"].parts
    assert part.result.differences == pytest.approx(values(path, "accuracy_barrier", ("sgd", "default")))
    assert claims["near"].verdict is ClaimVerdict.SUPPORTED


def test_a_seed_on_which_either_trial_diverged_has_no_value(claims: dict[str, JudgedClaim]) -> None:
    [part] = claims["lost"].parts
    assert (part.result.n, part.result.diverged_a) == (0, SEEDS)
    assert claims["lost"].verdict is ClaimVerdict.NOT_COMPARABLE


def test_a_selection_without_comparisons_leaves_out_claims_about_pairs(tmp_path: Path) -> None:
    text = SUITE.replace("pairs: {", "pairs: {against: [sgd], ")
    null = "{experiment: halves, metric: weight_distance, left: [adam, adam], right: 0, expect: higher}"
    (tmp_path / "suite.yaml").write_text(f"{text}claims: {{null: {null}}}")
    assert not choose(tmp_path / "suite.yaml", Choice(optimizers=("adam",))).claims
    assert choose(tmp_path / "suite.yaml", Choice(optimizers=("adam", "sgd"))).claims


def with_row(results: Results, trial: str, **changes: Any) -> Results:
    """Return the results with changes to the row of a trial or control."""
    rows, controls = (
        {one: dataclasses.replace(row, **changes) if one == trial else row for one, row in known.items()}
        for known in (results.rows, results.control_rows)
    )
    return dataclasses.replace(results, rows=rows, control_rows=controls)


def test_a_condition_is_judged_on_the_trials_of_each_optimizer(path: Path) -> None:
    claim = load_suite(path / "suite.yaml").claims["one"].model_copy(update={"where": {"steps": Bounds(above=1)}})
    results = read_results(read_run(path))
    suite = results.suite.model_copy(update={"claims": {"one": claim}})
    results = with_row(dataclasses.replace(results, suite=suite), "halves/net/adam/lr=0.03/seed=3", status="failed")
    [judged] = judge_claims(results)
    assert [(arm.label, arm.count("ok"), len(arm.trials)) for arm in judged.partly_judged] == [("adam lr=0.03", 5, 6)]


def test_a_control_above_the_target_loss_takes_its_seed_out_of_the_null(path: Path) -> None:
    results = read_results(read_run(path))
    results = with_row(results, "halves/net/sgd/default/seed=2/order=1", tasks_above_target=1)
    claims = {claim.name: claim for claim in judge_claims(results)}
    [part] = claims["near"].parts
    assert part.result.n == SEEDS - 1
    said = "claim 1, net, sgd with itself: 1 of 6 pairs above the target training loss; their seeds are left out."
    assert warnings_of({1: claims["near"]})[-1] == said


def test_solutions_not_compared_yet_are_the_reason(path: Path, tmp_path: Path) -> None:
    other = shutil.copytree(path, tmp_path / "other")
    (other / "pairs.parquet").unlink()
    claims = {claim.name: claim for claim in judge_claims(read_results(read_run(other)))}
    [part] = claims["near"].parts
    assert part.verdict is ClaimVerdict.NOT_COMPARABLE
    assert part.reason == "none of 6 pairs has a value on both sides: not compared yet"


def test_parts_are_counted_before_training(path: Path) -> None:
    suite = load_suite(path / "suite.yaml", ["seeds=6"])
    [shortage] = [found for found in suite_shortages(suite, trials(suite)) if "claim" in found.about]
    assert shortage.family == 2, "two learning rates of adam, each with its own null"


def test_reports_name_both_sides(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report(path, "markdown", capsys)
    assert "weight distance of sgd with adam higher than that of adam with itself" in text
    record = next(claim for claim in json.loads(report(path, "json", capsys))["claims"] if claim["claim"] == "apart")
    assert (record["left"], record["right"]) == (["sgd", "adam"], ["adam", "adam"])
    assert [part["left_variant"] for part in record["parts"]] == ["default with lr=0.003", "default with lr=0.03"]
    other = shutil.copytree(path, tmp_path / "other")
    assert main(["report", str(path), "--against", str(other), "--format", "csv"]) == 0
    assert "sgd with adam,adam with itself" in capsys.readouterr().out
    text = (other / "suite.yaml").read_text(encoding="utf-8")
    (other / "suite.yaml").write_text(text.replace("[adam lr=0.03, sgd]", "[sgd, adam]"), encoding="utf-8")
    assert main(["report", str(path), "--against", str(other)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "left adam lr=0.03 with sgd in A, sgd with adam in B" in shown


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            "left: [sgd, adam], right: sgd, expect: higher",
            "'right': expected two optimizers, or a number, as on the left",
        ),
        ("left: sgd, right: [sgd, adam], expect: higher", "'right': expected one optimizer, as on the left"),
        (
            "left: [sgd, adan], right: 0, expect: higher",
            "left: unknown optimizer in halves 'adan'; did you mean 'adam'?",
        ),
        (
            "left: [sgd], right: 0, expect: higher",
            "left: expected the name of an optimizer, or two in a list, as in [adam",
        ),
        (
            "left: [sgd, adam], right: [adam, sgd], expect: higher",
            "right: expected a different optimizer or variant from",
        ),
        (
            "left: [wild, wild], right: 0, expect: higher",
            "left: expected wild among the 'controls' of 'pairs', got sgd, adam",
        ),
        (
            "left: [sgd, adam], right: [sgd, sgd], expect: higher, matched: {on: average_accuracy, within: 1}",
            "'matched' cannot be combined with a claim about the solutions of two optimizers",
        ),
        (
            "left: [sgd, adam], right: 0, expect: higher, beside: [forgetting]",
            "beside: unknown metric of pairs 'forget",
        ),
        ("left: [sgd, adam], right: 0, expect: equivalent", "expect: equivalent: expected a 'margin', got none"),
    ],
)
def test_sides_that_cannot_be_compared_are_rejected(
    claim: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.yaml").write_text(
        f"{SUITE}claims: {{c: {{experiment: halves, metric: weight_distance, {claim}}}}}"
    )
    assert message in refusal(capsys, tmp_path, "run", tmp_path / "suite.yaml", "--dry-run")


@pytest.mark.parametrize(
    ("pairs", "claim", "message"),
    [
        (
            "",
            "metric: weight_distance, left: [sgd, adam], right: 0",
            "expected an experiment that compares solutions ('pairs')",
        ),
        (
            "pairs: {against: [wild]}",
            "metric: weight_distance, left: [sgd, adam], right: 0",
            "sgd or adam in 'against'",
        ),
        ("pairs: {metrics: [linear_cka]}", "metric: weight_distance, left: [sgd, adam], right: 0", "(linear_cka), got"),
        (
            "pairs: {}",
            "metric: weight_distance, left: sgd, right: adam",
            "c: 'weight_distance' is a metric of two solutions: expected two",
        ),
    ],
)
def test_a_claim_about_a_pair_that_is_not_compared_is_refused(
    pairs: str, claim: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(line if "pairs:" not in line else f"    {pairs}" for line in SUITE.splitlines())
    (tmp_path / "suite.yaml").write_text(f"{text}\nclaims: {{c: {{experiment: halves, expect: higher, {claim}}}}}")
    assert message in refusal(capsys, tmp_path, "run", tmp_path / "suite.yaml", "--dry-run")
