"""The report: sums over seeds against numbers worked out by hand, and tables that fit where they are read."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from optbench.plan import Trial, cohorts, complete, trials
from optbench.report import Spread, Summary, render, summarise
from optbench.report.terminal import number
from optbench.store import RunWriter, read_run
from optbench.store.tables import AccuracyRow, MetricRow, Row, TrialRow
from optbench.suite import dump_suite, load_suite, suite_hash

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
  pairs:
    tasks: {{kind: class-incremental}}
    models: {{mlp-100: {{kind: mlp}}}}
    protocol: {{max_epochs: 1, early_stopping: null}}
    optimizers: [adam]
"""

# The worked example of METRICS.md: average accuracy .7, forgetting .275, learning accuracy .8667.
EXAMPLE = [[0.1, 0.1, 0.1], [0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.5, 0.7, 0.9]]
METRICS = {"effective_rank": 20.0, "class_cosine_mean": 0.3, "hoyer": 0.4, "near_zero_share": 0.01}


def trial_row(status: str, error: str | None = None) -> TrialRow:
    return TrialRow(
        status=status,
        error_type="RuntimeError" if error else None,
        error_message=error,
        last_step=10,
        steps=10,
        parameters=100,
        device="cpu",
        hyperparameters="{}",
        init_hash="0",
        train_seconds=1.0,
        optimizer_seconds=0.5,
        optimizer_state_bytes=0,
        checkpoint=None,
        fallbacks=0,
        note=None,
    )


def rows_of(status: str, matrix: Sequence[Sequence[float | None]], metrics: Mapping[str, float | None]) -> list[Row]:
    rows: list[Row] = [trial_row(status, "a shape is wrong" if status == "failed" else None)]
    if status == "failed":
        return rows
    tasks = len(matrix[0])
    for after_task, line in enumerate(matrix):
        for task, accuracy in enumerate(line, start=1):
            rows.append(AccuracyRow(after_task, task, accuracy, None, 100, None, None))
    for name, value in metrics.items():
        layer = None if name in ("hoyer", "near_zero_share") else "features"
        rows.append(MetricRow(tasks, None, layer, name, value, None if value is not None else "undefined"))
        # What a report must not take instead: another layer, another task, an earlier time.
        rows.append(MetricRow(tasks, None, "hidden.0.weight", name, -77.0, None))
        rows.append(MetricRow(tasks, 1, layer, name, -77.0, None))
        rows.append(MetricRow(1, None, layer, name, -77.0, None))
    return rows


def write_run(
    folder: Path,
    results: Mapping[str, list[Row]],
    *,
    seeds: int = 2,
    stopping: str = "{on: validation, patience: 3}",
    status: str = "complete",
) -> Path:
    """A run directory as `optbench run` leaves it, with these rows by trial id."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.yaml"
    source.write_text(SUITE.format(seeds=seeds, stopping=stopping), encoding="utf-8")
    suite = complete(load_suite(source))
    planned = trials(suite)
    header = {"run": "made", "suite": suite.name, "suite_hash": suite_hash(suite), "seeds": suite.seeds}
    record = {**header, "command": [], "provenance": {"device": "cpu"}}
    writer = RunWriter.create(folder / "runs" / "made", dump_suite(suite), record, planned)
    for cohort in cohorts(planned):
        found = [(trial, row) for trial in cohort.trials for row in results.get(trial.id, [])]
        if found:
            writer.add(cohort, found)
    writer.finish(status)
    return writer.path


def every_trial(seeds: int = 2) -> list[str]:
    permuted = [f"permuted-mnist/mlp-100/sgd/default/seed={s}" for s in range(seeds)]
    return permuted + [f"pairs/mlp-100/adam/lr={lr}/seed={s}" for lr in ("0.001", "0.0001") for s in range(seeds)]


def shifted(by: float) -> list[list[float]]:
    return [[value + by for value in line] for line in EXAMPLE]


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    results = {trial: rows_of("ok", EXAMPLE, METRICS) for trial in every_trial()}
    results["permuted-mnist/mlp-100/sgd/default/seed=1"] = rows_of("ok", shifted(0.02), {**METRICS, "hoyer": 0.5})
    results["pairs/mlp-100/adam/lr=0.001/seed=1"] = rows_of("diverged", shifted(-0.3), METRICS)
    results["pairs/mlp-100/adam/lr=0.0001/seed=0"] = rows_of("failed", EXAMPLE, METRICS)
    return write_run(tmp_path, results)


def text_of(summary: Summary, width: int) -> str:
    file = io.StringIO()
    render(summary, Console(file=file, width=width))
    return file.getvalue()


def test_means_and_deviations_are_those_of_the_worked_example(run_path: Path) -> None:
    section = summarise(read_run(run_path)).sections[0]
    row = section.rows[0]
    assert (section.experiment, section.model, row.label, row.ok) == ("permuted-mnist", "mlp-100", "sgd", 2)
    sd = 0.02 / math.sqrt(2)  # of two values .02 apart
    expected = {
        "average_accuracy": (0.71, sd),
        "forgetting": (0.275, 0.0),
        "learning_accuracy": (0.8666666667 + 0.01, sd),
        "effective_rank": (20.0, 0.0),
        "hoyer": (0.45, 0.1 / math.sqrt(2)),
    }
    for name, (mean, deviation) in expected.items():
        spread = row.values[name]
        assert spread is not None, name
        assert spread.sd is not None, name
        assert (spread.mean, spread.sd) == pytest.approx((mean, deviation), abs=1e-9), name
        assert spread.n == 2


def test_diverged_and_failed_trials_are_counted_and_have_no_part_in_the_means(run_path: Path) -> None:
    summary = summarise(read_run(run_path))
    fast, slow = summary.sections[1].rows
    assert (fast.label, fast.planned, fast.ok, fast.diverged, fast.failed) == ("adam lr=0.001", 2, 1, 1, 0)
    assert (slow.label, slow.planned, slow.ok, slow.diverged, slow.failed) == ("adam lr=0.0001", 2, 1, 0, 1)
    for row in (fast, slow):
        spread = row.values["average_accuracy"]
        assert spread is not None
        assert spread.mean == pytest.approx(0.7)
        assert (spread.sd, spread.n) == (None, 1)
    assert summary.statuses == {"ok": 4, "diverged": 1, "failed": 1}
    shown = text_of(summary, 80)
    assert "made: complete, 6 trials: 4 ok, 1 diverged, 1 failed (cpu)" in shown
    assert "adam lr=0.001: 1 of 2; 1 diverged: not in the means." in shown
    assert "adam lr=0.0001: 1 of 2; 1 failed: not in the means." in shown


def test_only_class_incremental_experiments_show_last_and_earlier_tasks(run_path: Path) -> None:
    permuted, pairs = summarise(read_run(run_path)).sections
    names = {"last_task", "earlier_tasks"}
    assert names.isdisjoint(measure.name for measure in permuted.measures)
    assert names <= {measure.name for measure in pairs.measures}
    last, earlier = (pairs.rows[0].values[name] for name in ("last_task", "earlier_tasks"))
    assert last is not None
    assert earlier is not None
    assert last.mean == pytest.approx(0.9)
    assert earlier.mean == pytest.approx(0.6)


def test_a_measure_that_was_not_taken_has_no_column_and_one_undefined_somewhere_is_said(tmp_path: Path) -> None:
    results = {trial: rows_of("ok", EXAMPLE, {"effective_rank": 20.0}) for trial in every_trial()}
    results["permuted-mnist/mlp-100/sgd/default/seed=1"] = rows_of("ok", EXAMPLE, {"effective_rank": None})
    summary = summarise(read_run(write_run(tmp_path, results)))
    assert "hoyer" not in {measure.name for measure in summary.sections[0].measures}
    spread = summary.sections[0].rows[0].values["effective_rank"]
    assert spread == Spread(20.0, None, 1)
    assert "sgd: effective rank undefined in some of its trials." in text_of(summary, 80)


def test_an_interrupted_run_shows_what_is_missing(tmp_path: Path) -> None:
    results = {every_trial()[0]: rows_of("ok", EXAMPLE, METRICS)}
    summary = summarise(read_run(write_run(tmp_path, results, status="interrupted")))
    assert (summary.finished, summary.planned) == (1, 6)
    shown = text_of(summary, 80)
    assert "made: interrupted, 1 of 6 trials: 1 ok" in shown
    assert "sgd: 1 of 2; 1 not finished: not in the means." in shown
    assert "adam lr=0.001: 0 of 2; 2 not finished: not in the means." in shown


def test_a_single_seed_has_no_deviation(tmp_path: Path) -> None:
    results = {trial: rows_of("ok", EXAMPLE, METRICS) for trial in every_trial(seeds=1)}
    summary = summarise(read_run(write_run(tmp_path, results, seeds=1)))
    assert all(
        spread is not None and spread.sd is None
        for section in summary.sections
        for row in section.rows
        for spread in row.values.values()
    )
    assert "±" not in text_of(summary, 80).split("mean±sd")[0]


@pytest.mark.parametrize(
    ("stopping", "said"),
    [
        ("{on: validation, patience: 3}", "Early stopping on validation loss, patience 3, at most 1 epoch a task."),
        ("{on: test, patience: 5}", "Early stopping on test loss, patience 5, at most 1 epoch a task."),
        ("null", "No early stopping: 1 epoch a task."),
    ],
)
def test_the_split_that_early_stopping_looks_at_is_said(tmp_path: Path, stopping: str, said: str) -> None:
    results = {trial: rows_of("ok", EXAMPLE, METRICS) for trial in every_trial()}
    summary = summarise(read_run(write_run(tmp_path, results, stopping=stopping)))
    assert summary.sections[0].stopping == said
    assert said in text_of(summary, 80)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_table_fits_and_every_number_is_whole(run_path: Path, width: int) -> None:
    summary = summarise(read_run(run_path))
    shown = text_of(summary, width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "…" not in shown
    for section in summary.sections:
        for row in section.rows:
            for measure in section.measures:
                assert number(row.values[measure.name], measure.decimals) in shown


def test_more_room_means_fewer_tables(run_path: Path) -> None:
    summary = summarise(read_run(run_path))
    counts = [text_of(summary, width).count("optimizer") for width in (50, 80, 120)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 4, "two topics for each of two experiments"


def test_neutral_measures_have_no_arrow_and_directed_ones_have(run_path: Path) -> None:
    arrows = {m.name: m.arrow for section in summarise(read_run(run_path)).sections for m in section.measures}
    assert arrows["average_accuracy"] == "↑"
    assert arrows["forgetting"] == "↓"
    assert arrows["effective_rank"] == arrows["hoyer"] == ""


@pytest.mark.parametrize(
    ("spread", "decimals", "shown"),
    [
        (None, 3, "–"),
        (Spread(0.9512, 0.0021, 10), 3, "0.951±0.002"),
        (Spread(23.44, 1.05, 10), 1, "23.4±1.1"),
        (Spread(-0.0001, 0.0, 2), 3, "0.000±0.000"),
        (Spread(-0.0126, None, 1), 3, "-0.013"),
    ],
)
def test_numbers_are_short_and_exact(spread: Spread | None, decimals: int, shown: str) -> None:
    assert number(spread, decimals) == shown


def test_the_spread_leaves_out_what_is_not_finite() -> None:
    assert Spread.of([1.0, math.nan, 3.0]) == Spread(2.0, math.sqrt(2), 2)
    assert Spread.of([math.nan]) is None


def test_trials_of_the_made_up_run_have_the_ids_the_tests_expect(run_path: Path) -> None:
    planned: list[Trial] = trials(load_suite(run_path / "suite.yaml"))
    assert [trial.id for trial in planned] == every_trial()
