"""The table and the figure of plasticity: their numbers, excluded trials, and every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.cli.entry import main
from optbench.metrics.plasticity import plasticity_kept, window_means
from optbench.plan import Trial
from optbench.report.document import Table
from optbench.report.numbers import UNDEFINED
from optbench.report.spread import spread_text
from optbench.store.tables import AccuracyRow, Row
from optbench.studies.plasticity.figures import plasticity
from optbench.studies.plasticity.statistics import learnt_online
from optbench.studies.plasticity.tables import online_blocks
from tests.online_runs import SUITE, TASKS, online_run, sequence, trial_rows
from tests.reports import on_axes
from tests.written_runs import results_of


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run in which one seed of adam diverged at task 12."""
    ended = {("adam", 3): "diverged"}
    rows = lambda trial: trial_rows(trial, ended.get((trial.optimizer, trial.seed), "ok"))  # noqa: E731
    return online_run(tmp_path_factory.mktemp("plastic"), rows=rows)


def test_the_table_averages_windows_and_metrics_over_trials_that_are_ok(path: Path) -> None:
    results = results_of(path)
    table = next(
        block for block in online_blocks(learnt_online(results), False, spread_text) if isinstance(block, Table)
    )
    shown = {row[0].text: [cell.text for cell in row] for row in table.rows}
    assert list(shown) == ["sgd", "adam", "l2-init", "fresh"]
    assert shown["adam"][1] == "7 of 8"
    for name, cells in shown.items():
        seeds = [t for t in results.trials if t.optimizer == name and (name, t.seed) != ("adam", 3)]
        windows = np.stack([window_means(sequence(trial)) for trial in seeds])
        kept = plasticity_kept(np.stack([sequence(trial) for trial in seeds]))
        expected = [windows[:, 0], windows.max(axis=1), windows[:, -1], kept]
        assert cells[2:6] == [f"{v.mean():.3f}±{v.std(ddof=1):.3f}" for v in expected]
    assert shown["sgd"][7] == UNDEFINED
    assert shown["fresh"][7] == "0.000±0.000"


def test_every_format_shows_plasticity(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for name in ("terminal", "markdown", "html", "latex", "json", "csv"):
        assert main(["report", str(path), "--format", name]) == 0
        shown[name] = capsys.readouterr().out
        assert "0.769" in shown[name] or name in ("json", "csv")
    assert "Against fresh of sgd is undefined: the experiment has no fresh-network with the same base" in " ".join(
        shown["terminal"].split()
    )
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["report", str(path)]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines()[:40])) <= int(columns)
    records = {record["optimizer"]: record for record in json.loads(shown["json"])["plasticity"]}
    adam = records["adam"]
    assert (adam["planned"], adam["window"], len(adam["tasks"])) == (8, TASKS // 10, TASKS)
    assert adam["late_online_accuracy"]["n"] == adam["tasks"][0]["online_accuracy"]["n"] == 7
    lines = [row for row in csv.DictReader(io.StringIO(shown["csv"])) if row["pair_kind"] == "online"]
    at = {(row["optimizer"], row["metric"], row["task"]): row for row in lines}
    assert len(at) == len(lines) == 4 * (3 + 4 * TASKS)
    one = at["adam", "online_accuracy", "5"]
    assert float(one["mean"]) == pytest.approx(adam["tasks"][4]["online_accuracy"]["mean"])
    assert one["split"] == "training"


def test_the_figure_has_a_line_for_each_optimizer_and_shares_the_task_axis(path: Path) -> None:
    results = results_of(path)
    [figure] = plasticity([results])
    [panel] = figure.panels
    axes = on_axes(panel)
    lines = [line for line in axes.lines if line.get_label() == "_mean"]
    assert [text.get_text() for text in axes.texts] == ["sgd", "adam", "l2-init", "fresh"]
    assert [line.get_linestyle() for line in lines] == ["-", "-", ":", "--"]
    sgd = np.stack([window_means(sequence(t)) for t in results.trials if t.optimizer == "sgd"])
    np.testing.assert_allclose(lines[0].get_ydata(), sgd.mean(axis=0))
    np.testing.assert_allclose(lines[0].get_xdata(), np.arange(2, TASKS))  # the middle of three
    assert len([band for band in axes.collections if band.get_label() == "_spread"]) == 2, "controls have no band"
    below = [on_axes(one) for one in panel.below]
    assert [one.get_ylabel() for one in below] == ["dead units", "dormant units", "effective rank"]
    assert {one.get_xlim() for one in (axes, *below)} == {axes.get_xlim()}
    assert [one.get_xlabel() for one in (axes, *below)] == ["", "", "", "task"]
    assert "means over 3 consecutive tasks" in figure.caption
    assert figure.alt.startswith("Mean online accuracy on the last 3 tasks: sgd 0.7")
    assert "Dashed (fresh): fresh networks for every task" in figure.caption
    assert "1 of 8 seeds of adam diverged" in figure.caption


def test_many_optimizers_are_split_into_panels_that_all_show_the_controls(tmp_path: Path) -> None:
    more = "".join(f"  sgd-{i}: {{target: sgd, lr: 0.{i}}}\n" for i in range(1, 9))
    suite = SUITE.replace("optimizers:\n", f"optimizers:\n{more}").replace("seeds: 8", "seeds: 2")
    [figure] = plasticity([results_of(online_run(tmp_path, suite))])
    names = [[text.get_text() for text in on_axes(panel).texts] for panel in figure.panels]
    assert [len(found) for found in names] == [7, 7]
    assert all(found[-2:] == ["l2-init", "fresh"] for found in names)


def test_an_empty_column_is_replaced_by_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def level(trial: Trial) -> NDArray[np.float64]:
        return np.full(TASKS, 0.5)

    def rows(trial: Trial) -> list[Row]:
        return trial_rows(trial, learnt=level)

    lines = SUITE.splitlines(keepends=True)
    suite = "".join(line for line in lines if "fresh-network" not in line)
    assert main(["report", str(online_run(tmp_path, suite, rows))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Against fresh is undefined: the experiment has no fresh-network" in shown
    assert "fresh ↑" not in shown
    assert "Undefined: average accuracy, forgetting: some accuracies that the metric needs were not scored" in shown
    assert ": learning learning online optimizer trials accuracy ↑ accuracy ↑" in shown
    assert "learning and forgetting" not in shown
    assert "accuracy on each task right after training on it, 0 to 1" in shown


def test_forgetting_is_not_mentioned_if_it_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(trial: Trial) -> list[Row]:
        found = trial_rows(trial)
        if trial.optimizer != "sgd":
            return found
        return [dataclasses.replace(row, accuracy=0.1) if isinstance(row, AccuracyRow) else row for row in found]

    assert main(["report", str(online_run(tmp_path, rows=rows))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "† sgd: 8 of 8 trials: no better than guessing right after training (tasks 1-30)." in shown
    assert "forgotten" not in shown
