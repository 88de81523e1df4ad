"""The report on runs: summaries over seeds agree with hand-computed values, and every failure is reported."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from optbench.plan import Trial, trials
from optbench.report import Summary, run_report
from optbench.report.formats import markdown
from optbench.report.formats.terminal import show
from optbench.report.numbers import decimals, fixed, interval, p_value, signed
from optbench.report.spread import Spread, spread_text
from optbench.store.tables import MetricRow, Row
from optbench.suite import load_suite
from tests.reports import report_csv, report_json, summarise
from tests.written_runs import EXAMPLE, METRICS, results_of, rows_of, shifted, write_run

SUITE = """
name: made-up
seeds: {seeds}
optimizers:
  sgd: {{target: sgd, lr: 0.1}}
  adam: {{target: adam, lr: [1.0e-3, 1.0e-4]}}
experiments:
  permuted-mnist:
    tasks: {{kind: permuted, count: 3}}
    models: {{mlp-100: {{kind: mlp, hidden: [100]}}}}
    protocol: {{max_epochs: 1, early_stopping: {stopping}}}
    optimizers: [sgd]
    tuning: {{sgd: {{settings: 7, seeds: 2}}}}
  pairs:
    tasks: {{kind: class-incremental, group_size: 3}}
    models: {{mlp-100: {{kind: mlp}}}}
    protocol: {{max_epochs: 1, early_stopping: null}}
    optimizers: [adam]
"""


def make(
    folder: Path,
    results: Mapping[str, list[Row]],
    *,
    seeds: int = 2,
    stopping: str = "{on: validation, patience: 3}",
    status: str = "complete",
    name: str = "made",
) -> Path:
    """Write a run with these rows by trial id."""
    suite = SUITE.format(seeds=seeds, stopping=stopping)
    return write_run(folder, suite, lambda trial: results.get(trial.id, []), status=status, name=name)


def every_trial(seeds: int = 2) -> list[str]:
    permuted = [f"permuted-mnist/mlp-100/sgd/default/seed={s}" for s in range(seeds)]
    return permuted + [f"pairs/mlp-100/adam/lr={lr}/seed={s}" for lr in ("0.001", "0.0001") for s in range(seeds)]


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    results = {trial: rows_of() for trial in every_trial()}
    results["permuted-mnist/mlp-100/sgd/default/seed=1"] = rows_of("ok", shifted(0.02), {**METRICS, "hoyer": 0.5})
    results["pairs/mlp-100/adam/lr=0.001/seed=1"] = rows_of("diverged", shifted(-0.1))
    results["pairs/mlp-100/adam/lr=0.0001/seed=0"] = rows_of("failed")
    return make(tmp_path, results)


def text_of(summary: Summary, width: int = 80) -> str:
    file = io.StringIO()
    show(run_report(summary), Console(file=file, width=width))
    return file.getvalue()


def flat(summary: Summary, width: int = 80) -> str:
    """Return the text without line breaks, which depend on the width."""
    return " ".join(text_of(summary, width).split())


def summary_of(*paths: Path) -> Summary:
    return summarise([results_of(path) for path in paths])


def test_means_and_deviations_agree_with_the_worked_example(run_path: Path) -> None:
    section = summary_of(run_path).sections[0]
    row = section.rows[0]
    assert (section.experiment, section.model, row.label, row.arm.count("ok")) == (
        "permuted-mnist",
        "mlp-100",
        "sgd",
        2,
    )
    sd = 0.02 / math.sqrt(2)  # standard deviation of two values .02 apart
    expected = {
        "average_accuracy": (0.71, sd),
        "forgetting": (0.275, 0.0),
        "learning_accuracy": (0.8666666667 + 0.01, sd),
        "effective_rank": (20.0, 0.0),
        "hoyer": (0.45, 0.1 / math.sqrt(2)),
        "state_bytes_per_parameter": (8.0, 0.0),
        "milliseconds_per_step": (100.0, 0.0),
        "optimizer_share": (0.5, 0.0),
    }
    for name, (mean, deviation) in expected.items():
        spread = row.values[name]
        assert spread is not None, name
        assert spread.sd is not None, name
        assert (spread.mean, spread.sd) == pytest.approx((mean, deviation), abs=1e-9), name
        assert spread.n == 2
    assert row.matrix is not None
    assert np.allclose(row.matrix, np.array(EXAMPLE) + 0.01)


def test_diverged_and_failed_trials_are_counted_and_excluded_from_the_means(run_path: Path) -> None:
    summary = summary_of(run_path)
    fast, slow = summary.sections[1].rows
    assert (fast.label, *fast.arm.counts.values()) == ("adam lr=0.001", 2, 1, 1, 0, 0, 0)
    assert (slow.label, *slow.arm.counts.values()) == ("adam lr=0.0001", 2, 1, 0, 1, 0, 0)
    for row in (fast, slow):
        spread = row.values["average_accuracy"]
        assert spread is not None
        assert spread.mean == pytest.approx(0.7)
        assert (spread.sd, spread.n) == (None, 1)
    assert summary.runs[0].statuses == {"ok": 4, "diverged": 1, "failed": 1}
    shown = flat(summary)
    assert "made: complete, 6 trials: 4 ok, 1 diverged, 1 failed (cpu)" in shown
    assert "adam lr=0.001: 1 of 2; 1 diverged: excluded from the means." in shown
    assert "adam lr=0.0001: 1 of 2; 1 failed: excluded from the means." in shown
    assert "made: pairs/mlp-100/adam/lr=0.001/seed=1 diverged at step 10" in shown
    assert "made: pairs/mlp-100/adam/lr=0.0001/seed=0 failed RuntimeError: a shape is wrong" in shown


def test_only_class_incremental_experiments_show_last_and_earlier_tasks(run_path: Path) -> None:
    permuted, pairs = summary_of(run_path).sections
    names = {"last_task_accuracy", "earlier_tasks_accuracy"}
    assert names.isdisjoint(measure.name for measure in permuted.measures)
    assert names <= {measure.name for measure in pairs.measures}
    last, earlier = (pairs.rows[0].values[f"{name}_accuracy"] for name in ("last_task", "earlier_tasks"))
    assert last is not None
    assert earlier is not None
    assert last.mean == pytest.approx(0.9)
    assert earlier.mean == pytest.approx(0.6)


def test_missing_measures_have_no_column_and_undefined_ones_are_noted(tmp_path: Path) -> None:
    results = {trial: rows_of("ok", EXAMPLE, {"effective_rank": 20.0}) for trial in every_trial()}
    results["permuted-mnist/mlp-100/sgd/default/seed=1"] = rows_of("ok", EXAMPLE, {"effective_rank": None})
    summary = summary_of(make(tmp_path, results))
    assert "hoyer" not in summary.sections[0].metrics
    spread = summary.sections[0].rows[0].values["effective_rank"]
    assert spread == Spread(20.0, None, 1, 20.0, (20.0, 20.0), (20.0, 20.0))
    assert "sgd: effective rank is undefined in some trials." in flat(summary)


def test_values_that_are_only_a_lower_bound_are_noted(tmp_path: Path) -> None:
    remark = "an accuracy of 0.95 was not reached; this is a lower bound"

    def results(trial: Trial) -> list[Row]:
        note = remark if trial.experiment == "permuted-mnist" and trial.seed != 1 else None
        return [*rows_of(), MetricRow(len(EXAMPLE[0]), len(EXAMPLE[0]), None, "steps_to_accuracy", 15.0, note)]

    shown = flat(summary_of(write_run(tmp_path, SUITE.format(seeds=3, stopping="null"), results)))
    assert f"! sgd, 2 of 3 trials: steps to accuracy: {remark}." in shown
    assert shown.count(remark) == 1


def test_an_interrupted_run_shows_what_is_missing(tmp_path: Path) -> None:
    summary = summary_of(make(tmp_path, {every_trial()[0]: rows_of()}, status="interrupted"))
    assert (summary.runs[0].ended, summary.runs[0].planned) == (1, 6)
    shown = flat(summary)
    assert "made: interrupted, 1 of 6 trials: 1 ok" in shown
    assert "sgd: 1 of 2; 1 not finished: excluded from the means." in shown
    assert "adam lr=0.001: 0 of 2; 2 not finished: excluded from the means." in shown


def test_a_single_seed_has_no_deviation(tmp_path: Path) -> None:
    summary = summary_of(make(tmp_path, {trial: rows_of() for trial in every_trial(seeds=1)}, seeds=1))
    assert all(
        spread is not None and spread.sd is None
        for section in summary.sections
        for row in section.rows
        for spread in row.values.values()
    )
    assert "±" not in text_of(summary).split("mean±sd")[0]


def test_a_run_without_results_is_reported_as_such(tmp_path: Path) -> None:
    summary = summary_of(make(tmp_path, {}, status="interrupted"))
    assert not summary.measured
    shown = flat(summary)
    assert "made: interrupted, 0 of 6 trials" in shown
    assert "Nothing was measured" in shown
    assert json.loads(report_json(summary))["results"] == []
    assert report_csv(summary).startswith("run,experiment,model,optimizer,variant,")


@pytest.mark.parametrize(
    ("stopping", "said"),
    [
        ("{on: validation, patience: 3}", "Early stopping on validation loss, patience 3, at most 1 epoch a task."),
        ("{on: test, patience: 5}", "Early stopping on test loss, patience 5, at most 1 epoch a task."),
        ("null", "No early stopping: 1 epoch a task."),
    ],
)
def test_the_split_used_by_early_stopping_is_reported(tmp_path: Path, stopping: str, said: str) -> None:
    summary = summary_of(make(tmp_path, {trial: rows_of() for trial in every_trial()}, stopping=stopping))
    assert summary.sections[0].stopping == (said,)
    assert said in flat(summary)


def test_settings_and_the_command_to_repeat_a_run_are_shown(run_path: Path) -> None:
    shown = flat(summary_of(run_path))
    assert "tuning on permuted-mnist: 7 settings × 2 seeds for sgd" in shown
    assert "optbench run made.yaml" in shown
    assert str(run_path / "suite.yaml") in "".join(text_of(summary_of(run_path)).split("\n"))
    assert "torch 2.13.0" in shown


def test_several_runs_are_shown_side_by_side(tmp_path: Path) -> None:
    one = make(tmp_path, {trial: rows_of() for trial in every_trial()}, name="one")
    two = make(tmp_path, {trial: rows_of("ok", shifted(0.05)) for trial in every_trial()}, name="two")
    summary = summary_of(one, two)
    rows = summary.sections[0].rows
    assert [(row.run, row.label) for row in rows] == [("one", "sgd"), ("two", "sgd")]
    means = [spread.mean for row in rows if (spread := row.values["average_accuracy"]) is not None]
    assert means == pytest.approx([0.7, 0.75])
    assert len(summary.sections) == 2, "runs of the same suite share sections"
    lines = text_of(summary, 120).splitlines()
    assert any(line.startswith("one") and "0.700±0.000" in line for line in lines)
    assert any(line.startswith("two") and "0.750±0.000" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_table_fits_and_no_number_is_cut(run_path: Path, width: int) -> None:
    summary = summary_of(run_path)
    shown = text_of(summary, width)
    commands = ("  optbench run", "  /")  # stay on one line so that they can be copied
    assert max(len(line) for line in shown.splitlines() if not line.startswith(commands)) <= width
    assert "…" not in shown
    for section in summary.sections:
        for row in section.rows:
            for measure in section.measures:
                if measure.topic != "cost":
                    assert spread_text(row.values[measure.name], decimals(measure.name)) in shown


def test_wider_output_has_fewer_tables(run_path: Path) -> None:
    summary = summary_of(run_path)
    counts = [text_of(summary, width).count("\noptimizer") for width in (50, 80, 120)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 6, "two topics and a sparkline for each of two experiments"


def test_costs_are_explained_only_where_their_table_is_shown(run_path: Path) -> None:
    summary = summary_of(run_path)
    assert "a trial's share" not in flat(summary), "a terminal shows no table of costs"
    written = markdown.render(run_report(summary))
    assert "ms per step" in written
    assert "a trial's share of its cohort's training time" in written


def test_only_directed_measures_have_an_arrow(run_path: Path) -> None:
    arrows = {m.name: m.arrow for section in summary_of(run_path).sections for m in section.measures}
    assert arrows["average_accuracy"] == "↑"
    assert arrows["forgetting"] == "↓"
    assert arrows["effective_rank"] == arrows["hoyer"] == ""


def test_median_and_quartiles_agree_with_numpy(tmp_path: Path) -> None:
    values = [10.0, 14.0, 11.0, 30.0, 12.0]
    results = {trial: rows_of() for trial in every_trial(5)}
    for seed, value in enumerate(values):
        key = f"permuted-mnist/mlp-100/sgd/default/seed={seed}"
        results[key] = rows_of("ok", EXAMPLE, {"effective_rank": value})
    summary = summary_of(make(tmp_path, results, seeds=5))
    spread = summary.sections[0].rows[0].values["effective_rank"]
    assert spread is not None
    assert (spread.median, *spread.quartiles, *spread.extremes) == (12.0, 11.0, 14.0, 10.0, 30.0)
    file = io.StringIO()
    show(run_report(summary, statistic="median"), Console(file=file, width=120))
    assert "12.0 [11.0, 14.0]" in file.getvalue()


def spread(mean: float, sd: float | None) -> Spread:
    return Spread(mean, sd, 1 if sd is None else 10, mean, (mean, mean), (mean, mean))


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (None, 3, "–"),
        (spread(0.9512, 0.0021), 3, "0.951±0.002"),
        (spread(23.44, 1.05), 1, "23.4±1.1"),
        (spread(-0.0001, 0.0), 3, "0.000±0.000"),
        (spread(-0.0126, None), 3, "-0.013"),
    ],
)
def test_spreads_are_printed_with_matching_digits(value: Spread | None, digits: int, shown: str) -> None:
    assert spread_text(value, digits) == shown


@pytest.mark.parametrize(
    ("write", "shown"),
    [
        (lambda: fixed(math.inf, 3), "∞"),
        (lambda: fixed(math.nan, 3), "–"),
        (lambda: signed(0.0004, 3), "0.000"),
        (lambda: signed(0.0006, 3), "+0.001"),
        (lambda: signed(-math.inf, 3), "-∞"),
        (lambda: interval((-0.0151, math.inf), 3), "[-0.015, ∞]"),
        (lambda: interval(None, 3), ""),
        (lambda: p_value(6 / 1024), "0.0059"),
        (lambda: p_value(0.03125), "0.031"),
        (lambda: p_value(0.5), "0.50"),
        (lambda: p_value(1e-6), "1e-06"),
        (lambda: p_value(None), "–"),
    ],
)
def test_numbers_are_printed_briefly_and_correctly(write: Callable[[], str], shown: str) -> None:
    assert write() == shown


def test_the_spread_ignores_values_that_are_not_finite() -> None:
    found = Spread.of([1.0, math.nan, 3.0])
    assert found is not None
    assert (found.mean, found.sd, found.n) == (2.0, math.sqrt(2), 2)
    assert Spread.of([math.nan]) is None


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_json_and_csv_have_every_metric_unrounded(run_path: Path) -> None:
    summary = summary_of(run_path)
    told = json.loads(report_json(summary))
    assert (told["format"], told["version"]) == ("optbench-report", 1)
    expected = {
        (section.experiment, row.arm.optimizer, row.arm.variant, metric): row.values[metric]
        for section in summary.sections
        for row in section.rows
        for metric in section.metrics
    }
    for rows in (told["results"], records(report_csv(summary))):
        found = {(r["experiment"], r["optimizer"], r["variant"], r["metric"]): r for r in rows}
        assert found.keys() == expected.keys()
        for key, spread_ in expected.items():
            assert spread_ is not None
            assert float(found[key]["mean"]) == spread_.mean
            assert int(found[key]["n"]) == spread_.n
            assert found[key]["sd"] in (spread_.sd, "" if spread_.sd is None else str(spread_.sd))
    assert [trouble["status"] for trouble in told["troubles"]] == ["diverged", "failed"]
    assert np.allclose(told["matrices"][0]["accuracy"], np.array(EXAMPLE) + 0.01)


def test_the_keys_of_json_and_csv_are_stable(run_path: Path) -> None:
    summary = summary_of(run_path)
    header = (
        "run experiment model optimizer variant planned ok diverged failed missing metric direction "
        "n mean sd median q1 q3 min max "
        "switch_step switch_statistic switch_value switch_low switch_high switch_n "
        "pair_kind optimizer_b variant_b outside task step split learns chosen guessed exploded "
        "above_target many_dormant"
    )
    assert report_csv(summary).splitlines()[0] == header.replace(" ", ",")
    told = json.loads(report_json(summary))
    lists = {"runs", "results", "matrices", "claims", "remarks", "troubles"}
    lists |= {"switches", "pairs", "twins", "tunings", "plasticity"}
    assert set(told) == {"format", "version", *lists}
    elsewhere = {"pair_kind", "optimizer_b", "variant_b", "outside", "task", "step", "learns", "chosen"}
    assert set(told["results"][0]) == set(header.split()) - elsewhere
    assert {"run", "suite", "suite_hash", "status", "command", "repeat", "seeds", "statuses"} <= set(told["runs"][0])


def test_trials_of_the_made_up_run_have_the_expected_ids(run_path: Path) -> None:
    planned: Sequence[Trial] = trials(load_suite(run_path / "suite.yaml"))
    assert [trial.id for trial in planned] == every_trial()
