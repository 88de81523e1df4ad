"""Tuning in reports: the chosen settings with reasons in every format, and the cost of tuning in later runs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from optbench.cli import main
from optbench.plan import Trial
from optbench.report import Summary, comparison_report, run_report
from optbench.report.figures import save
from optbench.report.figures.drawing import Panel
from optbench.report.formats import render_text
from optbench.report.formats.terminal import show
from optbench.report.run_report import MANY_SETTINGS
from optbench.stats.comparison import Selection, compare
from optbench.store.tables import AccuracyRow, Row
from optbench.studies.tuning.figures import RING
from optbench.studies.tuning.statistics import tunings
from optbench.studies.tuning.tables import DATA, searched_text
from tests.reports import figures, on_axes, report_csv, report_json, summarise
from tests.studies.test_tuning_choice import SUITE as TUNED
from tests.studies.test_tuning_choice import trial_rows, tuned_run
from tests.written_runs import results_of, rows_of, trial_row, write_run

# From the command line

TINY = """
name: tiny-tuning
stage: tune
seeds: [1000, 1001]
optimizers:
  sgd: {target: sgd, lr: [0.001, 0.01, 0.1]}
  adam: {target: adam, lr: [1.0e-4, 1.0e-3, 1.0e+30]}
experiments:
  small:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [12]}}
    protocol: {batch_size: 32, max_epochs: 1, early_stopping: null, train_examples: 640, test_examples: 100,
               validation_examples: 200}
    metrics: []
    checkpoints: false
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    words = ["--runs-dir", str(folder / "runs"), "--name", "tiny", "--device", "cpu", "--jobs", "1", "--quiet"]
    assert main(["run", str(folder / "tiny.yaml"), *words]) == 0
    return folder / "runs" / "tiny"


def reported(path: Path, suffix: str) -> str:
    file = path.parent.parent / f"report.{suffix}"
    assert main(["report", str(path), "-o", str(file)]) == 0
    return file.read_text(encoding="utf-8")


def validation_means(path: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Map (optimizer, variant) to learning and final accuracy on validation data, read from the Parquet file only."""
    found = {}
    for key, setting in pd.read_parquet(path / "accuracy.parquet").groupby(["optimizer", "variant"], sort=False):
        learnt = setting[setting.after_task == setting.task].validation_accuracy
        final = setting[setting.after_task == setting.task.max()].validation_accuracy
        found[key] = (learnt.mean(skipna=False), final.mean(skipna=False))
    return found


def test_the_report_of_a_tuning_run_agrees_with_its_rows(path: Path) -> None:
    told = json.loads(reported(path, "json"))
    assert {row["stage"] for row in pd.read_parquet(path / "trials.parquet").to_dict("records")} == {"tune"}
    known = validation_means(path)
    for tuned in told["tunings"]:
        scores = {s["variant"]: s for s in tuned["settings"]}
        assert len(scores) == 3
        best = max(s["learning_accuracy"] for s in scores.values() if s["learning_accuracy"] is not None)
        for variant, found in scores.items():
            learnt, final = known[tuned["optimizer"], variant]
            assert found["planned"] == 2
            if np.isnan(final):
                assert (found["score"], found["diverged"], found["learns"]) == (None, 2, False)
            else:
                assert (found["learning_accuracy"], found["score"]) == pytest.approx((learnt, final))
                assert found["learns"] == (learnt >= best - 0.03 - 1e-12)
        learns = {variant: s["score"] for variant, s in scores.items() if s["learns"]}
        assert tuned["chosen"] == max(learns, key=lambda variant: learns[variant])
        assert [s["variant"] for s in scores.values() if s["chosen"]] == [tuned["chosen"]]
    by_name = {tuned["optimizer"]: tuned for tuned in told["tunings"]}
    assert by_name["sgd"]["edges"] == {"lr": "largest"}, "a learning rate of .1 is not too large for 20 steps"
    assert by_name["adam"]["edges"] == {}, "the largest learning rate diverges"


@pytest.mark.parametrize("suffix", ["txt", "md", "html", "tex"])
def test_every_format_shows_the_choice_and_warnings(path: Path, suffix: str) -> None:
    text = re.sub(r"\s+", " ", reported(path, suffix)).replace("--widen", "-{}-widen" if suffix == "tex" else "--widen")
    for said in (
        "Tuning",
        "the chosen settings, on validation data",
        DATA,
        "within 0.03 of the optimizer",
        "small: diverged: adam lr=1e+30 (2 of 2).",
        "small, sgd: lr 0.1 is the largest value in its grid: search further",
        "validation accuracy over all tasks at the end",
    ):
        assert said in text, said
    assert "test accuracy" not in text
    assert text.index("the chosen settings") < text.index("learning and forgetting"), "the tuning section comes first"


def test_figures_mark_the_chosen_setting_and_name_the_data(path: Path, tmp_path: Path) -> None:
    results = results_of(path)
    drawn = {figure.name: figure for figure in figures([results])}
    sweep = drawn["sweep_small_net_lr"]
    assert save(sweep, tmp_path, ["png"])["png"].stat().st_size > 10_000
    chosen = {tuned.optimizer: tuned.chosen for tuned in tunings(results)}
    assert all(chosen.values())
    for panel, metric in zip(sweep.panels, ("learning_accuracy", "average_accuracy", "forgetting"), strict=False):
        rings = firsts(panel, RING)
        expected = [(s.hyperparameters["lr"], np.mean(s.by_seed[metric])) for s in chosen.values() if s]
        assert rings == [pytest.approx(place) for place in expected], "one panel for both optimizers"
    assert len(sweep.panels) == 5
    assert all(len(firsts(panel, RING)) == 1 for panel in sweep.panels[3:])
    assert "Validation accuracy; a ring is the setting that tuning chooses." in sweep.caption
    assert "Chosen: sgd at 0.1, adam at 0.001." in sweep.alt
    for name in ("final-accuracy_small", "task-accuracy_small_net", "accuracy-matrix_small_net"):
        assert drawn[name].caption.startswith("Validation accuracy "), name


def firsts(panel: Panel, label: str) -> list[tuple[float, float]]:
    """Return the first point of every line with this label."""
    lines = [line for line in on_axes(panel).lines if line.get_label() == label]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


# Made-up runs


def text_of(summary: Summary, width: int = 80) -> str:
    file = io.StringIO()
    show(run_report(summary), Console(file=file, width=width))
    return file.getvalue()


def flat(summary: Summary, width: int = 120) -> str:
    return " ".join(text_of(summary, width).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    statuses = {"two/narrow/sgd/": "failed", "sgd/lr=0.01/seed=8": "diverged", "alone/default/seed=7": None}
    return tuned_run(tmp_path_factory.mktemp("made"), statuses=statuses)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_tuning_section_fits_the_width(made: Path, width: int) -> None:
    shown = text_of(summarise([results_of(made)]), width)
    assert max(len(line) for line in shown.splitlines() if not line.startswith(("  optbench", "  /"))) <= width
    assert "…" not in shown


def test_reasons_against_a_choice_are_reported(made: Path) -> None:
    shown = flat(summarise([results_of(made)]))
    assert "one, alone: the choice may change, with 1 of 1 setting not finished yet." in shown
    assert "one, alone: no setting can be chosen: each has a trial that diverged, failed or has not finished." in shown
    assert "two, sgd: no setting can be chosen" in shown
    assert "one: the budgets differ; the numbers of settings tried are 3 for sgd, 4 for sam, 1 for alone." in shown
    assert "one: diverged: sgd lr=0.01 (2 of 4)." in shown
    assert "two: failed: sgd lr=0.01 (2 of 2), lr=0.1 (2 of 2), lr=1 (2 of 2)." in shown


def test_a_rule_that_no_setting_can_meet_is_explained(tmp_path: Path) -> None:
    text = TUNED + "tune: {metric: forgetting, learning_margin: null}\n"
    shown = flat(summarise([results_of(tuned_run(tmp_path, text))]))
    assert "two, sgd: no setting can be chosen: forgetting is undefined for settings whose trials are all ok." in shown
    assert "The chosen setting has the lowest forgetting; values are means over 2 tuning seeds." in shown


def test_settings_are_listed_in_the_order_of_their_values(tmp_path: Path) -> None:
    text = TUNED.replace("lr: [0.01, 0.1, 1.0]", "lr: [0.1, 1.0, 0.01]")
    results = results_of(tuned_run(tmp_path, text))
    lines = text_of(summarise([results])).split("two, narrow: the settings of sgd")[1].splitlines()
    named = [line.split()[0] for line in lines if line.startswith("lr=")][:3]
    assert named == ["lr=0.01", "lr=0.1", "lr=1"]
    (chosen,) = [tuned.chosen for tuned in tunings(results) if tuned.experiment == "two"]
    assert chosen is not None
    marked = [line.split()[0] for line in lines[:9] if line.rstrip().endswith("chosen")]
    assert marked == [chosen.variant]


def drawn_suite(count: int) -> str:
    listed = ", ".join(
        f"{{lr: {rate:.4g}, momentum: {i / 100}}}" for i, rate in enumerate(np.geomspace(0.011, 0.9, count))
    )
    return f"""
name: drawn
stage: tune
seeds: 2
optimizers: {{sgd: {{target: sgd, variants: [{listed}]}}}}
experiments: {{one: {{tasks: {{kind: permuted, count: 2}}, models: {{net: {{kind: mlp}}}}}}}}
tune: {{optimizers: {{sgd: {{lr: {{log: [0.001, 1.0], points: 4}}, momentum: [0.0, 0.9]}}}}}}
"""


def test_many_settings_are_summarised_on_a_terminal(tmp_path: Path) -> None:
    count = MANY_SETTINGS + 1
    results = results_of(write_run(tmp_path, drawn_suite(count), trial_rows, tune={"sampler": "random"}))
    summary = summarise([results])
    shown = flat(summary)
    assert "learning and forgetting" not in shown
    assert f"one, net: {count} settings; markdown, html, csv and json show all of them" in shown
    assert "one, net: learning and forgetting" in render_text(run_report(summary), "markdown")
    assert f"{count} × 2 lr: 0.001–1; momentum: 0, 0.9" in shown
    assert "one, net, random: the chosen settings, on validation data" in shown
    (tuned,) = tunings(results)
    assert tuned.chosen is not None
    lr, momentum = tuned.chosen.hyperparameters["lr"], tuned.chosen.hyperparameters["momentum"]
    assert f"lr={lr:g}, momentum={momentum:g}" in shown
    # Settings differ in more than the learning rate, so the figure has points without a line.
    (figure,) = [figure for figure in figures([results]) if figure.name.startswith("sweep")]
    assert [x for panel in figure.panels[:3] for x, _ in firsts(panel, RING)] == [lr] * 3
    assert not [place for panel in figure.panels for label in ("_means", "_path") for place in firsts(panel, label)]
    assert "a line" not in figure.caption


def test_a_grid_over_two_settings_has_a_line_for_each_value_of_the_second(tmp_path: Path) -> None:
    text = TUNED.replace("lr: [0.01, 0.1, 1.0]", "lr: [0.01, 0.1, 1.0], momentum: [0.0, 0.9]")
    results = results_of(tuned_run(tmp_path, text))
    (figure,) = [f for f in figures([results]) if f.name == "sweep_one_wide_lr"]
    assert len(firsts(figure.panels[0], "_means")) == 2
    assert len(firsts(figure.panels[0], RING)) == 1
    assert "sgd momentum=0.9" in figure.alt or "sgd momentum=0.0" in figure.alt


def test_an_edge_of_random_draws_refers_to_the_range(tmp_path: Path) -> None:
    def rows(trial: Trial) -> list[Row]:
        value = 0.5 + 0.4 * float(trial.hyperparameters["lr"])
        return [trial_row(), *(AccuracyRow(i, j, None, None, 9, value, None) for i in range(3) for j in (1, 2))]

    run = write_run(tmp_path, drawn_suite(5), rows, tune={"sampler": "tpe"})
    shown = flat(summarise([results_of(run)]))
    assert "one, sgd: lr 0.9 is at the upper end of the search space: search further." in shown
    assert "lr: largest" in shown
    assert "--widen" not in shown


def test_a_choice_that_is_only_a_tie_is_reported(tmp_path: Path) -> None:
    def rows(trial: Trial) -> list[Row]:
        value = 0.5 + 0.4 * (float(trial.hyperparameters["lr"]) > 0.05)
        return [trial_row(), *(AccuracyRow(i, j, None, None, 9, value, None) for i in range(3) for j in (1, 2))]

    shown = flat(summarise([results_of(write_run(tmp_path, drawn_suite(4), rows))]))
    same = "lr=0.9,momentum=0.03 has the same average accuracy as lr=0.2073, momentum=0.02"
    assert f"one, sgd: {same}, which was tried first and is therefore chosen." in shown
    assert shown.count("the same average accuracy") == 1


def test_csv_has_every_setting_in_rows_separate_from_results(made: Path) -> None:
    results = results_of(made)
    summary = summarise([results])
    lines = list(csv.DictReader(io.StringIO(report_csv(summary))))
    rows = [line for line in lines if line["pair_kind"] == "tuning"]
    assert {line["split"] for line in lines} == {"validation"}
    assert len([line for line in lines if not line["pair_kind"]]) == len(json.loads(report_json(summary))["results"])
    expected = {
        (tuned.experiment, "+".join(tuned.models), tuned.optimizer, setting.variant): (tuned, setting)
        for tuned in tunings(results)
        for setting in tuned.settings
    }
    assert len(rows) == 2 * len(expected)
    for row in rows:
        tuned, setting = expected[row["experiment"], row["model"], row["optimizer"], row["variant"]]
        value = setting.score if row["metric"] == "average_accuracy" else setting.learning
        assert row["mean"] == ("" if np.isnan(value) else str(value)) or float(row["mean"]) == pytest.approx(value)
        assert row["learns"] == str(setting.learns)
        assert row["chosen"] == str(tuned.chosen is not None and tuned.chosen.variant == setting.variant)


def test_reports_over_both_stages_name_the_data_of_every_number(tmp_path: Path) -> None:
    runs = [
        results_of(tuned_run(tmp_path, TUNED.replace("stage: tune", f"stage: {stage}"), name=stage))
        for stage in ("tune", "eval")
    ]
    summary = summarise(runs)
    shown = flat(summary)
    assert "test (validation in a tuning run) accuracy over all tasks at the end" in shown
    assert "tune: Accuracies of a tuning run are measured on validation data" in shown
    assert {row["split"] for row in json.loads(report_json(summary))["results"]} == {"test", "validation"}
    final = next(figure for figure in figures(runs) if figure.name.startswith("final-accuracy_one"))
    assert final.caption.startswith("Test accuracy (validation in a tuning run)")


def test_a_comparison_within_a_tuning_run_names_its_data(tmp_path: Path) -> None:
    for stage in ("tune", "eval"):
        text = TUNED.replace("stage: tune", f"stage: {stage}").replace("seeds: [7, 8]", "seeds: 6")
        results = results_of(tuned_run(tmp_path, text, name=stage))
        document = comparison_report(compare(Selection(results, "sgd", "lr=0.1"), Selection(results, "alone")))
        said = "accuracies of tune are on validation data (tuning run)"
        assert (said in render_text(document, "markdown")) == (stage == "tune")


# The cost of tuning, shown in a later run

STATED = """
name: judged
seeds: 2
optimizers:
  sgd: {{target: sgd, lr: 0.1}}
  sam: {{target: sam, base: {{target: sgd, lr: 0.2}}}}
  adam: {{target: adam}}
experiments:
  one:
    tasks: {{kind: permuted, count: 3}}
    models: {{net: {{kind: mlp}}}}
    tuning: {tuning}
"""
SGD = "sgd: {settings: 7, seeds: 2, space: {lr: {log: [0.01, 1.0], points: 7}}, chosen: {lr: 0.1}}"
SAM = "sam: {settings: 7, seeds: 2, space: {base.lr: [0.1, 0.2]}, chosen: {base.lr: 0.2}, edge: [base.lr]}"


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (
            f"{{{SGD}, {SAM}}}",
            "tuning on one: 7 settings × 2 seeds for sgd (lr=0.1 of 0.01–1), "
            "sam (base.lr=0.2 of 0.1, 0.2, at an edge); not stated for adam",
        ),
        (
            "{sgd: {settings: 7, seeds: 2}, sam: {settings: 5, seeds: 2}, adam: {settings: 5, seeds: 2, sampler: tpe}}",
            "tuning on one: unequal budgets: 7 settings × 2 seeds for sgd; 5 settings × 2 seeds for sam; "
            "5 settings × 2 seeds, tpe for adam",
        ),
        (
            "{sgd: {settings: 7, seeds: 2, chosen: {lr: 0.3}}}",
            "tuning on one: 7 settings × 2 seeds for sgd (lr=0.3, but trained with 0.1); not stated for sam, adam",
        ),
        (
            "{sam: {settings: 7, seeds: 2, space: {base.lr: {of: sgd.lr, times: 2.0}}, chosen: {base.lr: 0.2}}}",
            "tuning on one: 7 settings × 2 seeds for sam (base.lr=0.2 of 2 × sgd.lr); not stated for sgd, adam",
        ),
        ("null", "tuning: the suite states no tuning budgets"),
    ],
)
def test_a_later_run_shows_the_cost_of_tuning(tmp_path: Path, tuning: str, said: str) -> None:
    run = write_run(tmp_path, STATED.format(tuning=tuning), lambda trial: rows_of())
    summary = summarise([results_of(run)])
    assert said in flat(summary, 400)
    assert "the chosen settings" not in flat(summary)
    assert json.loads(report_json(summary))["tunings"] == []


@pytest.mark.parametrize(
    ("write", "shown"),
    [
        (lambda: searched_text([0.1, 0.2], ()), "0.1, 0.2"),
        (lambda: searched_text(None, [0.4, 0.1, 0.2, 0.3]), "0.1–0.4"),
        (lambda: searched_text({"log": [0.001, 1.0], "points": 7}, ()), "0.001–1"),
        (lambda: searched_text(["a", "b", "c", "d"], ()), "a, b, c, d"),
        (lambda: searched_text([True, False], ()), "true, false"),
    ],
)
def test_searched_values_are_printed_compactly(write: Callable[[], Any], shown: str) -> None:
    assert write() == shown
