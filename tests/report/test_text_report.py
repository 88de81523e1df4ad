"""Runs on text in reports, comparisons, claims and gates use bits per byte, with their own unit and name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from optbench.cli import main
from optbench.metrics.score import MARGIN
from optbench.plan import Trial
from optbench.report.figures import figures
from optbench.report.figures.forgetting_curves import forgetting_curves, read_curves
from optbench.stats.arms import arms
from optbench.stats.claims import judge_claims
from optbench.stats.comparison import compare_arms
from optbench.store.tables import AccuracyRow, EarlierRow, Row
from optbench.studies import STUDIES
from tests.conftest import report
from tests.written_runs import results_of, trial_row, write_run

SUITE = """
name: read
seeds: 7
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam}
experiments:
  text:
    dataset: {kind: text-domains}
    tasks: {kind: domains, order: [prose, code], tokens_per_task: 2048}
    models: {gpt: {kind: gpt, layers: 1, width: 16}}
    figures: [{x: learning_accuracy, y: forgetting}]
  images:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [10]}}
claims:
  keeps: {experiment: text, metric: forgetting, left: adam, right: sgd, expect: lower, beside: [average_accuracy]}
  alike: {experiment: text, metric: learning_accuracy, left: adam, right: sgd, expect: equivalent}
  best: {experiment: text, metric: last_task_accuracy, left: adam, right: sgd, expect: lower,
    where: {learning_accuracy: {above: 0}}}
  sure: {experiment: images, metric: average_accuracy, left: adam, right: sgd, expect: higher}
"""
TUNED = (
    SUITE.partition("claims:")[0]
    .replace("seeds: 7", "seeds: 2\nstage: tune\ntune: {learning_margin: 0.1}")
    .replace("lr: 0.1", "lr: [0.05, 0.1, 0.2]")
)
SWITCHED = SUITE.partition("claims:")[0].replace(
    "adam: {target: adam}",
    """adam: {target: adam}
  to-adam: {target: switch, first: {target: sgd, lr: 0.1}, then: {target: adam}, at: [2, 4]}
  noisy: {target: gradient-noise, base: {target: sgd, lr: 0.1}, steps: [1, 2]}""",
)
FORGOTTEN = {"sgd": 0.5, "adam": 0.3, "to-adam": 0.4, "noisy": 0.5}
"""Values in bits per byte."""


def rows(trial: Trial) -> list[Row]:
    """Return rows of text learnt to 2.5 bits per byte, .01 apart between optimizers; the first domain is forgotten."""
    noise = np.random.default_rng([trial.seed, len(trial.optimizer)]).uniform(0, 0.002)
    found: list[Row] = [trial_row("ok")]
    learnt = 2.5 + 0.01 * (trial.optimizer == "adam") + noise
    forgotten = FORGOTTEN[trial.optimizer] + noise
    if trial.experiment == "text":  # scored while the second domain was trained
        found += [EarlierRow(2, step, 1, 2.0, 0.4, learnt + forgotten * share) for step, share in ((5, 0.8), (10, 1.0))]
    for after, task in np.ndindex(3, 2):
        bits = None
        if trial.experiment == "text":
            bits = 7.0 if after <= task else learnt + forgotten * (after == 2 and task == 0)
        right = 0.5 if bits is None else 0.4  # next-token accuracy far above the share of the most frequent token
        found.append(
            AccuracyRow(
                after, task + 1, right + noise, 2.0, 1000, right, 2.0, 0.1, bits, None if bits is None else bits
            )
        )
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("text"), SUITE, rows)


def test_values_and_verdicts_are_in_bits_per_byte(run: Path) -> None:
    results = results_of(run)
    assert results.in_bits == {"text"}
    sgd, adam, *images = arms(results)
    assert sgd.value("learning_accuracy", 0) == pytest.approx(-2.5, abs=0.003)
    assert sgd.value("average_accuracy", 0) == pytest.approx(-2.75, abs=0.003)
    assert sgd.value("forgetting", 0) == pytest.approx(0.5, abs=0.003)
    assert sgd.validated("average_accuracy", 0) == sgd.value("average_accuracy", 0)
    assert images[0].value("average_accuracy", 0) == pytest.approx(0.5, abs=0.003)
    assert not results.not_learnt, "learning is judged by next-token accuracy"
    found = {one.metric.name: one for one in compare_arms(adam, sgd).metrics}
    forgetting = found["forgetting"].metric
    assert (forgetting.unit, forgetting.margin) == ("bits per byte", MARGIN)
    assert found["forgetting"].result.difference == pytest.approx(-0.2, abs=0.003)
    assert found["average_accuracy"].metric.said == "average score"
    assert compare_arms(*images[:2]).metrics[0].metric.margin == 0.005
    verdicts = {judged.name: (str(judged.verdict), judged.margin) for judged in judge_claims(results)}
    # A difference of .01 bits is below the margin for bits, but twice the margin for accuracies.
    assert verdicts["keeps"] == ("supported", MARGIN)
    assert verdicts["alike"] == ("supported", MARGIN)
    assert verdicts["sure"][1] == 0.005


def test_tables_name_the_score_and_its_unit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = report(run, "markdown", capsys)
    text, images = shown.split("## text, gpt")[1].split("images, net", 1)
    assert "average score ↑" in " ".join(text.split("|")[:40]).replace("<br>", " ")
    assert "-bits per byte on each task during training" in text
    assert "Matrices of bits per byte" in text
    assert "average accuracy" in images.replace("<br>", " ")
    for words in ("negative bits per byte on", "in bits per byte"):
        assert words in " ".join(shown.split())
    records = json.loads(report(run, "json", capsys))
    matrix = next(one["accuracy"] for one in records["matrices"] if one["experiment"] == "text")
    assert matrix[0] == [-7.0, -7.0]


def test_claims_name_the_score(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = report(run, "markdown", capsys).split("## Claims")[1].split("\n## ")[0]
    assert "learning score of adam equivalent to that of sgd" in shown
    assert (
        "last task score of adam lower than that of sgd, by 0.02 or more [where the mean learning score is above 0]"
        in shown
    )
    assert "left out: mean learning score -2.5" in shown
    assert "average score -2." in shown, "next to a claim"
    assert shown.count("accuracy") == 1, "in the claim about images"


def test_forgetting_curves_start_after_learning_and_end_with_the_run(run: Path) -> None:
    results = results_of(run)
    found = read_curves(results)
    assert {task for _, task in found} == {1}
    assert {trial for trial, _ in found} == {trial.id for trial in results.trials if trial.experiment == "text"}
    for (trial, _), curve in found.items():
        matrix = results.matrices[trial]  # validation data has the same values here
        (first, learnt), (_, between), (last, end) = curve
        assert (first, last) == (1.0, 2.0)
        assert (learnt, end) == (matrix[1, 0], matrix[2, 0])
        assert learnt - between == pytest.approx(0.8 * (learnt - end))
    (figure,) = forgetting_curves([results])
    assert [panel.title for panel in figure.panels] == ["prose"]
    assert "on prose at the end: sgd" in figure.alt


def test_figures_of_text_have_bits_per_byte_on_their_axes(run: Path) -> None:
    drawn = figures([results_of(run)], STUDIES)
    mine = [figure for figure in drawn if "text" in figure.name]
    assert {figure.name.partition("_")[0] for figure in mine} >= {
        *("final-accuracy", "task-accuracy", "accuracy-matrix", "forgetting-curves")
    }
    for figure in mine:
        assert "bits per byte" in figure.title + figure.caption + figure.alt
        assert "accuracy" not in figure.title + figure.alt
    assert any("Test accuracy" in figure.caption for figure in drawn if "images" in figure.name)


def test_switched_optimizers_are_compared_in_bits_per_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, SWITCHED, rows, name="switched")
    shown = report(path, "markdown", capsys).split("Switching optimizers")[1].replace("<br>", " ")
    noisy, switched = (shown.split(f"text, gpt, {name}: ")[1].split("images, net")[0] for name in ("noisy", "to-adam"))
    assert "average score (-bits per byte) ↑" in noisy
    assert "forgetting (bits per byte) ↓" in noisy
    assert "average score |" in switched, "a ratio has no unit and no direction"
    assert "average accuracy ↑" in shown.split("images, net, noisy: ")[1]
    drawn = [figure for figure in figures([results_of(path)], STUDIES) if figure.name.startswith("switch_text")]
    assert len(drawn) == 2
    assert all(figure.alt.startswith("Mean average score (-bits per byte) by k") for figure in drawn)


def test_gates_are_in_bits_per_byte(run: Path) -> None:
    words = ["compare", f"{run}:adam", f"{run}:sgd", "--experiment", "text", "--fail-on"]
    assert main([*words, "forgetting:+0.02"]) == 0
    assert main([*words, "forgetting:-0.1"]) == 1
    assert main([*words, "average_accuracy:-1%"]) == 0


def test_tuning_on_text_uses_validation_bits_per_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, TUNED, rows, name="tuned")
    shown = " ".join(report(path, "markdown", capsys).split())
    assert "among those whose learning score is within 0.1 of the optimizer's best" in shown
    assert "highest average score" in shown
    drawn = figures([results_of(path)], STUDIES)
    assert any("score" in figure.caption for figure in drawn if "text" in figure.name)
    assert math.isfinite(arms(results_of(path))[0].value("average_accuracy", 0))
