"""`compare` and `report` as used by people and CI jobs: streams, files, exit codes, and incomplete runs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from optbench.cli import main
from optbench.plan import Trial
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.store.tables import Row
from tests.reports import figures
from tests.written_runs import rows_of, trial_row, write_run

SUITE = """
name: duel
seeds: 10
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam, lr: 1.0e-3}
experiments:
  permuted:
    tasks: {kind: permuted, count: 3}
    models: {small: {kind: mlp, hidden: [10]}}
claims:
  right: {experiment: permuted, metric: forgetting, left: sgd, right: adam, expect: lower, source: Figure 0}
"""
WOBBLE = [0.003, -0.001, 0.004, -0.004, 0.001, 0.002, -0.005, 0.0015, -0.002, 0.0035]


def rows(trial: Trial, extra: float = 0.0) -> Sequence[Row]:
    forgets = (
        0.1 + (0.1 + extra if trial.optimizer == "adam" else 0.0) + WOBBLE[trial.seed] * (trial.optimizer == "sgd")
    )
    matrix = [[0.1] * 3, [0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9 - forgets, 0.9 - forgets, 0.9]]
    return rows_of("ok", matrix, {"effective_rank": 20 + WOBBLE[-trial.seed] * 100}, init_hash=str(trial.seed))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the runs `base` and `proposal`; adam forgets .03 more in `proposal`."""
    write_run(tmp_path, SUITE, rows, name="base")
    write_run(tmp_path, SUITE, lambda trial: rows(trial, 0.03), name="proposal")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_two_optimizers_of_a_run_can_be_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "base:sgd", "base:adam"]) == 0
    shown, said = capsys.readouterr()
    assert "A = base:sgd, B = base:adam; every difference is A - B" in shown
    assert "better" in shown
    assert said == ""


def test_exploratory_metrics_are_counted_on_a_terminal_and_shown_elsewhere(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ["compare", "base:sgd", "base:adam"]

    def shown(*options: str) -> str:
        assert main([*sides, *options]) == 0
        return " ".join(capsys.readouterr().out.split())

    results = json.loads(shown("--format", "json"))["results"]
    valued = {row["metric"] for row in results if row["verdict"] is None and row["median_a"] is not None}
    assert "backward_transfer" in valued

    brief = shown()
    assert "forgetting ↓ better" in brief
    assert "backward transfer" not in brief
    assert f"Not shown: {len(valued)} exploratory metrics; --all shows them" in brief

    full = shown("--all")
    assert "backward transfer ↑ exploratory" in full
    assert "--all" not in full

    named = shown("--metric", "backward_transfer")
    assert "backward transfer ↑ exploratory" in named
    assert "--all" not in named

    for name in ("markdown", "html", "latex", "csv", "json"):
        text = shown("--format", name)
        assert re.search(r"backward.{0,2}transfer", text), name
        assert "--all" not in text, name
    assert main([*sides, "--format", "csv"]) == 0
    assert valued <= {line["metric"] for line in csv.DictReader(io.StringIO(capsys.readouterr().out))}


@pytest.mark.parametrize("width", [60, 80, 120])
def test_an_arrow_stays_with_the_name_of_its_metric_on_a_terminal(
    width: int, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["compare", "base:sgd", "base:adam", "--all"]) == 0
    shown = capsys.readouterr().out
    assert "transfer ↑" in shown
    assert not re.search("^ *[↑↓]", shown, re.MULTILINE)


def test_gates_decide_the_exit_code_after_the_report_is_written(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = ["--fail-on", "forgetting:+0.02", "--fail-on", "average_accuracy:-10%"]
    assert main(["compare", "proposal", "base", *gates, "-o", "report.md"]) == 1
    shown, said = capsys.readouterr()
    assert shown == ""
    assert "optbench: error: gate forgetting:+0.02 failed on permuted, small, adam" in said
    text = Path("report.md").read_text(encoding="utf-8")
    assert text.startswith("# optbench compare")
    assert "**failed**" in text
    assert main(["compare", "base", "proposal", *gates]) == 0, "the better run passes"


def test_an_inconclusive_gate_fails_only_when_strict(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = ["compare", "base:sgd", "base:adam", "--fail-on", "forgetting:-0.1"]
    assert main(gate) == 0
    assert "optbench: warning: gate forgetting:-0.1 inconclusive" in capsys.readouterr().err
    assert main([*gate, "--strict"]) == 1
    assert "optbench: error: gate forgetting:-0.1 inconclusive" in capsys.readouterr().err


def learnt_nothing(*optimizers: str) -> Callable[[Trial], Sequence[Row]]:
    """Return rows in which these optimizers stay at chance on every task."""
    guessing = [[0.1] * 3] * 4
    return lambda trial: rows_of("ok", guessing) if trial.optimizer in optimizers else rows_of()


@pytest.mark.parametrize(
    ("unlearnt", "code", "kind", "reason"),
    [
        (("sgd",), 1, "error", "10 of A's 10 trials did not learn every task"),
        (("adam",), 0, "warning", "10 of B's 10 trials did not learn every task"),
        (("sgd", "adam"), 0, "warning", "10 of A's 10 trials and 10 of B's 10 trials did not learn every task"),
    ],
)
def test_a_gate_is_inconclusive_without_learning_and_fails_if_only_the_proposal_does_not_learn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unlearnt: tuple[str, ...],
    code: int,
    kind: str,
    reason: str,
) -> None:
    write_run(tmp_path, SUITE, learnt_nothing(*unlearnt), name="run")
    monkeypatch.chdir(tmp_path)
    words = ["compare", "run:sgd", "run:adam", "--fail-on", "forgetting:+0.9"]
    assert main([*words, "--format", "markdown"]) == code
    shown, said = capsys.readouterr()
    assert f"optbench: {kind}: gate forgetting:+0.9 inconclusive on permuted, small, sgd: {reason}" in said
    (row,) = (line for line in shown.splitlines() if line.startswith("| forgetting:+0.9 "))
    for name in ("sgd", "adam"):
        assert (f"{name}\N{NO-BREAK SPACE}†" in row) == (name in unlearnt)
    assert reason in row
    assert main([*words, "--strict"]) == 1
    assert "optbench: error: gate forgetting:+0.9 inconclusive" in capsys.readouterr().err


@pytest.mark.parametrize(("diverged", "code"), [((), 1), (("adam",), 0), (("sgd",), 1)])
def test_a_side_with_diverged_trials_did_not_learn_more_reliably(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverged: tuple[str, ...], code: int
) -> None:
    """One trial of A is at chance; half of the trials of some optimizers diverge."""

    def rows(trial: Trial) -> Sequence[Row]:
        if trial.optimizer in diverged and trial.seed >= 5:
            return [trial_row("diverged")]
        return rows_of("ok", [[0.1] * 3] * 4) if trial.optimizer == "sgd" and trial.seed == 0 else rows_of()

    write_run(tmp_path, SUITE, rows, name="run")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "run:sgd", "run:adam", "--fail-on", "forgetting:+0.9"]) == code


def test_a_diverged_trial_alone_does_not_make_an_inconclusive_gate_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interval of equal values contains the threshold 0; every other trial learnt its tasks."""

    def rows(trial: Trial) -> Sequence[Row]:
        if (trial.optimizer, trial.seed) == ("sgd", 9):
            return [trial_row("diverged")]
        end = 0.8 + WOBBLE[trial.seed] * (trial.optimizer == "sgd")
        return rows_of("ok", [[0.1] * 3, [0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [end, end, 0.9]])

    write_run(tmp_path, SUITE, rows, name="run")
    monkeypatch.chdir(tmp_path)
    words = ["compare", "run:sgd", "run:adam", "--fail-on", "forgetting:+0"]
    assert main(words) == 0
    assert "optbench: warning: gate forgetting:+0 inconclusive" in capsys.readouterr().err
    assert main([*words, "--strict"]) == 1


def test_a_metric_without_values_because_all_trials_diverged_is_not_called_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, SUITE, lambda trial: [trial_row("diverged")], name="run")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "run:sgd", "run:adam", "--fail-on", "forgetting:+0.5"]) != 2
    assert "add it to `metrics`" not in capsys.readouterr().err


def test_a_side_that_forgets_less_because_it_learns_less_gets_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def less(trial: Trial, learns: float) -> Sequence[Row]:
        top, forgets = (learns, 0.05) if trial.optimizer == "sgd" else (0.9, 0.1)
        forgets += abs(WOBBLE[trial.seed])
        end = [top - forgets, top - forgets, top]
        return rows_of("ok", [[0.1] * 3, [top, 0.1, 0.1], [top, top, 0.1], end])

    monkeypatch.chdir(tmp_path)
    for name, learns in (("less", 0.8), ("within", 0.896), ("more", 0.95)):
        write_run(tmp_path, SUITE, lambda trial, learns=learns: less(trial, learns), name=name)
        for a, b in (("sgd", "adam"), ("adam", "sgd")):
            assert main(["compare", f"{name}:{a}", f"{name}:{b}"]) == 0
            shown = " ".join(capsys.readouterr().out.split())
            assert ("better" if a == "sgd" else "worse") in shown
            side, other = ("A", "B") if a == "sgd" else ("B", "A")
            remark = f"{side} (sgd) forgets less than {other} (adam) but also learns less"
            assert (remark in shown) == (name == "less")


TWO = SUITE.replace(
    "claims:",
    "  other:\n    tasks: {kind: permuted, count: 3}\n    models: {small: {kind: mlp, hidden: [10]}}"
    "\n    optimizers: {sgd: {}}\nclaims:",
)


def test_experiments_that_one_side_did_not_train_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, TWO, rows, name="two")
    monkeypatch.chdir(tmp_path)
    for sides in (["two:sgd", "two:adam"], ["two:adam", "two:sgd"]):
        assert main(["compare", *sides]) == 0
        assert "warning: other: not compared, because adam was not trained there\n" in capsys.readouterr().err
        assert main(["compare", *sides, "--experiment", "permuted"]) == 0
        assert capsys.readouterr().err == ""
    write_run(tmp_path, TWO.replace("optimizers: {sgd: {}}", "optimizers: {adam: {}}"), rows, name="three")
    assert main(["compare", "two", "three", "--force"]) == 0
    said = capsys.readouterr().err
    assert "warning: other: not compared, because sgd was not trained there in three\n" in said
    assert "warning: other: not compared, because adam was not trained there in two\n" in said


def test_a_gate_on_a_metric_that_was_not_measured_is_an_error(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "base:sgd", "base:adam", "--fail-on", "srank:+1"]) == 2
    shown, said = capsys.readouterr()
    assert shown == ""
    assert said.count("\n") == 1
    assert "--fail-on 'srank:+1': expected a metric that was measured, got 'srank'" in said
    assert "add it to `metrics` of permuted" in said

    def some(trial: Trial) -> Sequence[Row]:
        return rows_of(metrics={"srank": 3.0 if trial.seed < 2 else None}, init_hash=str(trial.seed))

    write_run(runs.parent, SUITE, some, name="some")
    assert main(["compare", "some:sgd", "some:adam", "--fail-on", "srank:+1"]) == 0
    assert "warning: gate srank:+1 inconclusive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["compare", "base", "base"], 4, "expected two different sides"),
        (["compare", "base", "bse"], 2, "no run 'bse' in runs; did you mean 'base'?"),
        (["compare", "base:sgdd", "base:adam"], 2, "unknown optimizer 'sgdd'; did you mean 'sgd'?"),
        (["compare", "base:", "base:adam"], 2, "expected RUN, RUN:OPTIMIZER or RUN:OPTIMIZER/VARIANT"),
        (["compare", "base", "proposal", "--metric", "forgeting"], 2, "did you mean 'forgetting'?"),
        (
            ["compare", "base", "proposal", "--metric", "forgetting", "--all"],
            2,
            "--all cannot be combined with --metric",
        ),
        (["compare", "base", "proposal", "--fail-on", "forgeting:+1"], 2, "did you mean 'forgetting'?"),
        (["compare", "base", "proposal", "--fail-on", "forgetting"], 2, "expected METRIC:+SIZE or METRIC:-SIZE"),
        (["compare", "base", "proposal", "--format", "markdwn"], 2, "did you mean 'markdown'?"),
        (["compare", "base", "proposal", "-o", "no/such/folder/x.md"], 2, "cannot write"),
        (["compare", "base"], 2, "compare: expected RUN_B[:OPTIMIZER], got none"),
        (["report", "bsae"], 2, "no run 'bsae' in runs; did you mean 'base'?"),
        (["report", "base", "base"], 2, "a run is named twice"),
        (["report", "base", "--format", "pdf"], 2, "unknown format 'pdf'"),
        (["report", "base", "-o", "no/such/folder/x.json"], 2, "cannot write"),
    ],
)
def test_mistakes_are_reported_in_one_line_with_the_right_exit_code(
    runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1


def test_different_settings_are_exit_4_and_can_be_forced_with_a_warning(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(runs.parent, SUITE.replace("lr: 0.1", "lr: 0.2"), rows, name="other")
    assert main(["compare", "base", "other"]) == 4
    assert "their suites differ in optimizers.sgd.lr (0.1, 0.2)" in capsys.readouterr().err
    assert main(["compare", "base", "other", "--force"]) == 0
    assert "optbench: warning: forced: their suites differ" in capsys.readouterr().err


def test_settings_of_the_named_optimizers_may_differ_between_runs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(runs.parent, SUITE.replace("lr: 0.1", "lr: 0.2"), rows, name="faster")
    assert main(["compare", "faster", "base"]) == 4
    assert "name the optimizer, as in faster:sgd base:sgd, or pass --force" in capsys.readouterr().err
    assert main(["compare", "faster:adam", "base:adam"]) == 4, "a difference in another optimizer is not the question"
    assert "name the optimizer, as in faster:sgd base:sgd" in capsys.readouterr().err
    for a, b in (("sgd", "sgd"), ("sgd", "adam"), ("adam", "sgd")):
        assert main(["compare", f"faster:{a}", f"base:{b}"]) == 0
        remark = "the settings of the compared optimizers differ: optimizers.sgd.lr (0.2, 0.1)\n"
        assert capsys.readouterr().err == f"optbench: warning: {remark}"
    inside = SUITE.replace("    models:", "    optimizers: {sgd: {lr: 0.3}, adam: {}}\n    models:")
    write_run(runs.parent, inside, rows, name="inside")
    write_run(runs.parent, inside.replace("0.3", "0.4"), rows, name="further")
    assert main(["compare", "inside:sgd", "further:sgd"]) == 0
    assert "differ: experiments.permuted.optimizers.sgd.lr (0.3, 0.4)" in capsys.readouterr().err
    write_run(runs.parent, SUITE.replace("lr: 0.1", "lr: 0.2").replace("count: 3", "count: 2"), rows, name="longer")
    assert main(["compare", "longer:sgd", "base:sgd"]) == 4, "another difference is still refused"
    said = capsys.readouterr().err
    assert "their suites differ in experiments.permuted.tasks.count (2, 3); pass --force" in said


def test_a_comparison_without_common_finished_seeds_is_exit_4(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs.parent, SUITE, lambda trial: [], name="empty", status="interrupted")
    assert main(["compare", "base", "empty"]) == 4
    shown, said = capsys.readouterr()
    assert "0 of 10 seeds paired" in shown
    assert "no seed has finished on both sides" in said


@pytest.mark.parametrize("name", ["terminal", "markdown", "html", "latex", "csv", "json"])
def test_standard_output_contains_only_the_report(runs: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    for words in (["report", "base"], ["compare", "proposal", "base"]):
        assert main([*words, "--format", name]) == 0
        shown, said = capsys.readouterr()
        assert said == ""
        start = {"markdown": "# optbench", "html": "<!DOCTYPE html>", "latex": "\\documentclass", "json": "{"}
        assert shown.startswith(start.get(name, ""))
        assert "\x1b" not in shown
        if name == "json":
            assert json.loads(shown)["version"] == 1
        elif name == "csv":
            assert len(list(csv.DictReader(io.StringIO(shown)))) > 10
        else:
            assert "forgetting" in shown


@pytest.mark.parametrize("suffix", ["txt", "md", "html", "tex", "csv", "json"])
def test_the_suffix_of_the_file_determines_the_format(
    runs: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    names = {"txt": "terminal", "md": "markdown", "tex": "latex"}
    assert main(["report", "base", "-o", f"a.{suffix}"]) == 0
    assert main(["report", "base", "-o", "b", "--format", names.get(suffix, suffix)]) == 0
    assert Path(f"a.{suffix}").read_bytes() == Path("b").read_bytes()
    assert capsys.readouterr().out == ""


def test_figures_are_written_and_linked_from_the_report(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    assert main(["report", "base", "--figures", "out/figures", "-o", "out/report.md"]) == 0
    text = Path("out/report.md").read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert linked
    assert all((Path("out") / link).is_file() for link in linked)
    suffixes = {path.suffix for path in Path("out/figures").iterdir()}
    assert suffixes == {".svg", ".png", ".pdf"}
    assert "figures in out/figures" in capsys.readouterr().err


def test_a_page_shows_every_panel_and_other_formats_draw_none(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "base", "--format", "html"]) == 0
    page = capsys.readouterr().out
    panels = [len(figure.panels) for figure in figures([read_results(read_run(runs / "base"))])]
    assert panels
    assert page.count("<figure>") == len(panels)
    assert page.count("<svg ") == sum(panels)
    code = (
        "import sys; from optbench.cli import main\n"
        "codes = [main(['report', 'base', '--format', name]) for name in sys.argv[1:]]\n"
        "sys.exit(1 if any(codes) or 'matplotlib' in sys.modules else 0)"
    )
    others = ["terminal", "markdown", "latex", "csv", "json"]
    assert subprocess.run([sys.executable, "-c", code, *others], capture_output=True, check=False).returncode == 0


def test_every_format_shows_claims(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("terminal", "markdown", "html", "latex", "json"):
        assert main(["report", "base", "--format", name]) == 0
        assert "supported" in capsys.readouterr().out
    assert main(["report", "base", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["claims"][0]["verdict"] == "supported"


# --- Incomplete runs


def with_trouble(trial: Trial) -> Sequence[Row]:
    if trial.optimizer == "adam" and trial.seed == 0:
        return rows_of("diverged", [[0.1] * 3, [0.2] * 3, [None] * 3, [None] * 3], {}, init_hash="0")
    return rows_of("failed") if trial.optimizer == "adam" and trial.seed == 1 else rows(trial)


def test_every_format_shows_diverged_and_failed_trials(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs.parent, SUITE, with_trouble, name="trouble")
    for name in ("terminal", "markdown", "html", "latex"):
        assert main(["report", "trouble", "--format", name]) == 0
        shown = re.sub(r"\s+", " ", capsys.readouterr().out.replace("\\", ""))
        assert "1 diverged, 1 failed: excluded from the means" in shown
        assert "a shape is wrong" in shown
    assert main(["report", "trouble", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    adam = next(line for line in lines if line["optimizer"] == "adam")
    assert [adam[key] for key in ("planned", "ok", "diverged", "failed", "n")] == ["10", "8", "1", "1", "8"]
    assert main(["compare", "trouble:sgd", "trouble:adam"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "9 of 10 seeds paired" in shown
    assert "B (adam), of 10 trials: 1 diverged, 1 failed" in shown


def test_an_empty_run_is_reported_with_exit_4(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs.parent, SUITE, lambda trial: [], name="empty", status="interrupted")
    for name in ("terminal", "markdown", "html", "latex", "csv", "json"):
        assert main(["report", "empty", "--format", name]) == 4
        shown, said = capsys.readouterr()
        assert said == "optbench: nothing was measured in empty\n"
        assert name in ("csv", "json") or "Nothing was measured" in shown


def test_a_report_without_optional_tables_shows_the_rest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("metrics", "spectra", "similarity", "curves", "pruning"):
        (runs / "base" / f"{name}.parquet").unlink()
    assert main(["report", "base", "--format", "html"]) == 0
    assert "0.83" in capsys.readouterr().out


def test_an_unreadable_table_another_schema_and_a_missing_column_are_refused_in_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("runs/base/accuracy.parquet")
    whole = file.read_bytes()

    def refused(said: str) -> None:
        for words in (["report", "base"], ["compare", "base:sgd", "base:adam"]):
            assert main(words) == 2
            shown, error = capsys.readouterr()
            assert shown == ""
            assert said in error
            assert str(file) in error
            assert len(error.splitlines()) == 1

    file.write_bytes(whole[: len(whole) // 2])
    refused("unreadable")
    file.write_bytes(b"")
    refused("unreadable")
    table = pq.read_table(pa.BufferReader(whole))
    pq.write_table(table.replace_schema_metadata({"optbench_schema_version": "99"}), file)
    refused("expected schema version 1, got 99")
    pq.write_table(table.drop_columns(["loss"]), file)
    refused("lacks the column loss")
    pq.write_table(table.set_column(0, "trial", pa.array(range(table.num_rows))), file)
    assert main(["report", "base"]) in (0, 2), "rows of unknown trials are refused or ignored"
    assert len(capsys.readouterr().err.splitlines()) <= 1
    (runs / "base" / "run.json").write_text('{"schema_version": 2}', encoding="utf-8")
    assert main(["report", "base"]) == 2
    assert "expected schema version 1, got 2" in capsys.readouterr().err


def test_report_and_compare_import_neither_torch_nor_pandas_nor_scipy(runs: Path) -> None:
    for words in (["report", "base", "--format", "html"], ["compare", "base:sgd", "base:adam"]):
        code = (
            "import sys, io, contextlib; from optbench.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()): code = main(sys.argv[1:])\n"
            "sys.exit(code or ' '.join({'torch', 'pandas', 'scipy', 'matplotlib.pyplot'} & sys.modules.keys()) or 0)"
        )
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# --- The documented workflow

PAGE = Path(__file__).parents[2] / "docs" / "comparing.md"
WORKFLOW = PAGE.parents[1] / "examples" / "github-actions.yml"
OPTIMIZER = """
import torch

class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr * {factor})
"""
MINE = """
name: mine
seeds: 6
optimizers:
  mine: {target: ./mine.py:Mine, lr: 0.1}
experiments:
  permuted:
    tasks: {kind: permuted, count: 2}
    models: {small: {kind: mlp, hidden: [10]}}
    protocol:
      max_steps: 30
      train_examples: 1000
      validation_examples: 200
      test_examples: 500
      early_stopping: null
"""


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def workflow() -> list[str]:
    """Return the commands of the documented workflow, except those that install."""
    text = WORKFLOW.read_text(encoding="utf-8")
    assert f"```yaml\n{text}```" in PAGE.read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step and "pip install" not in step["run"]]


@pytest.mark.skipif(shutil.which("git") is None, reason="the workflow checks out commits with git")
def test_the_documented_workflow_judges_a_pull_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "suite.yaml").write_text(MINE, encoding="utf-8")
    (tmp_path / ".gitignore").write_text("runs\n__pycache__\nbin\nsummary.md\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text(OPTIMIZER.format(factor=1), encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "base")
    base = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "mine.py").write_text(OPTIMIZER.format(factor=1e-6), encoding="utf-8")
    git(tmp_path, "commit", "-qam", "proposal: hardly moves")
    # Make `optbench` available as an installed command.
    command = tmp_path / "bin" / "optbench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m optbench "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    codes = []
    for step in workflow():
        script = step.replace("${{ github.event.pull_request.base.sha }}", base)
        assert "${{" not in script
        done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        codes.append((done.returncode, done.stderr[-500:]))
    assert [code for code, _ in codes] == [0, 1, 0], codes
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.index("# optbench compare") < summary.index("# optbench: mine")
    assert "**failed**" in summary
    assert "learning_accuracy:-1%" in summary
