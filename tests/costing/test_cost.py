"""`optbench cost`: a process for each optimizer, the results file, and the report in every format."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.costing import memory, session
from optbench.costing.contenders import CONTENDERS, chosen
from optbench.costing.document import CSV_COLUMNS, cost_report, digits, size_text
from optbench.costing.job import CostJob
from optbench.costing.result import CostResult, Row, load
from optbench.costing.session import CostPlan, ask
from optbench.report.formats import FORMATS, render_text

FACTOR = 1.6
"""An estimate is at least the measured value and at most this many times it."""
MINE = """
import torch
from torch.profiler import record_function


class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        print("from mine")
        for p in self.param_groups[0]["params"]:
            with record_function("statistics"):
                total = self.state[p].setdefault("total", torch.zeros_like(p)).add_(p.grad * p.grad)
            p.sub_(self.param_groups[0]["lr"] * p.grad / total.sqrt().add_(1e-8))


class Greedy(Mine):
    def step(self):
        torch.zeros(10**13)


class Broken(Mine):
    def step(self):
        raise ValueError("out of order")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose `runs` contains three results of `cost` for a user's optimizer."""
    there = tmp_path_factory.mktemp("cost")
    (there / "mine.py").write_text(MINE, encoding="utf-8")
    before = Path.cwd()
    os.chdir(there)
    try:
        words = ["cost", "./mine.py:Mine", "greedy=./mine.py:Greedy", "broken=./mine.py:Broken", "--set", "Mine.lr=0.1"]
        options = ["--size", "tiny", "--steps", "2", "--warm-up", "0", "--seconds", "0", "--threads", "1,2", "--quiet"]
        assert main([*words, *options, "--memory", "4", "-o", "table.md"]) == 3, "one of them failed"
    finally:
        os.chdir(before)
    return there


@pytest.fixture
def file(folder: Path) -> Path:
    (found,) = (folder / "runs").glob("cost-*.json")
    return found


def test_a_users_optimizer_is_measured_and_failures_are_in_its_row(file: Path) -> None:
    result = load(file)
    mine, greedy, broken = result.rows
    assert mine.status == "ok"
    assert mine.parameters == 124_672
    assert mine.state == mine.planned_state == 4 * mine.parameters
    assert mine.settings == {"lr": 0.1}
    assert mine.source_hash == broken.source_hash
    assert [t.threads for t in mine.timings] == [1, 2]
    assert [t.clock for t in mine.timings] == ["processor", "wall"]
    assert all(t.statistics > 0 and t.update > 0 and t.roots == 0 for t in mine.timings)
    assert mine.peak is not None
    assert mine.needed is not None
    assert mine.idle < mine.peak <= mine.needed <= FACTOR * mine.peak
    assert greedy.status == "too large"
    assert "stopped at the limit" in greedy.note
    assert broken.status == "failed"
    assert broken.note == "ValueError: out of order"
    assert result.limit == 4 << 30


@pytest.mark.parametrize("form", FORMATS)
def test_report_shows_costs_in_every_format(form: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(file), "--format", form]) == 0
    out = capsys.readouterr().out
    assert "Mine" in out
    assert "too large" in out
    assert "from mine" not in out
    if form == "json":
        assert json.loads(out) == {**json.loads(file.read_text()), "lines": []}
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [row["optimizer"] for row in rows] == ["Mine", "Mine", "greedy", "broken"]
        assert tuple(rows[0]) == CSV_COLUMNS
        assert float(rows[0]["step_seconds"]) > 0
        assert rows[2]["step_seconds"] == ""


def test_report_finds_results_by_name_and_shows_several(
    folder: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", file.stem, "--runs-dir", str(folder / "runs")]) == 0
    one = capsys.readouterr().out
    other = tmp_path / "other.json"
    other.write_text(file.read_text())
    assert main(["report", str(file), str(other)]) == 0
    both = capsys.readouterr().out
    assert both.count("tiny: memory") == 2 * one.count("tiny: memory") == 2
    assert "other" in both
    assert (folder / "table.md").read_text().count("| Mine") == 4, "two results, each with times, memory and state"


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_every_row_within_its_width(
    width: int, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["report", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("! broken: failed: ValueError: out of order") for line in lines)
    assert sum(line.startswith("greedy") and "too large" in line for line in lines) == 3, "both times and the memory"


def test_an_optimizer_that_does_not_fit_is_reported_before_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cost", "pytorch-optimizer-shampoo", "--size", "bert-base", "--memory", "8", "--quiet"]) == 4
    out, err = capsys.readouterr()
    (row,) = load(next(Path("runs").glob("cost-*.json"))).rows
    assert row.status == "too large"
    assert row.needed is not None
    # Two float32 matrices of 30,522² and the copies needed to decompose them.
    assert row.needed > 2 * 4 * 30_522**2
    assert row.parameters == 110_106_428
    assert f"it would need about {size_text(row.needed)}" in " ".join(out.split())
    assert "nothing was measured" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "bert"], "--size: unknown size 'bert'; did you mean 'bert-base'?"),
        (["adamm"], "unknown optimizer 'adamm'; did you mean 'adam'?"),
        (["adam", "--set", "rate=1"], "unknown hyper-parameter 'rate' of adam"),
        (["./gone.py:Mine"], "gone.py"),
        (["--threads", "0"], "--threads 0: expected numbers from 1 to 9999"),
        (["--device", "cuda"], "--device cuda"),
        (["--format", "pdf"], "--format: unknown format 'pdf'"),
    ],
)
def test_mistakes_are_refused_before_measuring(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cost", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "unreadable"),
        ("[]", "expected a result of 'optbench cost', got another file"),
        ('{"format": "optbench-report"}', "expected a result of 'optbench cost', got another file"),
        ('{"format": "optbench-cost", "version": 2}', "'version'"),
        ("[" * 100_000, "unreadable"),
    ],
)
def test_files_that_are_not_results_are_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cost.json").write_text(text)
    assert main(["report", str(tmp_path / "cost.json")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_runs_and_results_of_cost_cannot_be_mixed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(file), "a-run"]) == 2
    assert "expected runs or results of optbench cost, got both" in capsys.readouterr().err
    assert main(["report", str(file), "--median"]) == 2
    assert "are for runs" in capsys.readouterr().err


FIRST = Row(
    optimizer="sgd", target="sgd", settings={}, size="tiny", tokens=1, parameters=1, status="started", first=1.0
).model_dump_json()


def job() -> CostJob:
    plan = CostPlan(tuple(chosen(["sgd"])), ("tiny",), (1,), "cpu", 2, 0.0, 60.0, 1 << 32)
    (found,) = plan.jobs()
    return found


@pytest.mark.parametrize(
    ("code", "status", "note"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed", "killed by SIGKILL: it printed nothing"),
        ("import sys; sys.exit('no\\n\\x1b[31m')", "failed", "ended with exit code 1: "),
        ("import time; time.sleep(60)", "too slow", "stopped after 1 s, before the end of its first step"),
        (
            f"import time; print({FIRST!r}, flush=True); time.sleep(60)",
            "too slow",
            "stopped after 1 s, after its first",
        ),
        (f"print({FIRST!r}, flush=True); raise SystemExit(7)", "failed", "ended with exit code 7"),
    ],
)
def test_a_process_that_dies_or_is_too_slow_gives_a_row(
    code: str, status: str, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WORKER", (sys.executable, "-c", code))
    row = ask(job(), timeout=1 if "sleep" in code else 60)
    assert (row.status, row.optimizer, row.size) == (status, "sgd", "tiny")
    assert row.note.startswith(note)
    assert "\x1b" not in row.note


def test_available_and_resident_memory_are_measured() -> None:
    assert 1 << 26 < memory.resident() <= memory.peak()
    assert memory.available() > 1 << 26


def test_numbers_are_printed_with_three_digits() -> None:
    shown = [digits(value) for value in (0, 0.01234, 0.1234, 1.234, 12.34, 123.4, 12345.0)]
    assert shown == ["0", "0.0123", "0.123", "1.23", "12.3", "123", "12,300"]
    assert [size_text(n) for n in (0, 1 << 19, 3 << 30, None)] == ["0 MiB", "0.500 MiB", "3.00 GiB", "–"]


def test_a_result_with_only_failures_has_a_report(file: Path) -> None:
    result = load(file)
    empty = result.model_copy(update={"rows": result.rows[1:]})
    for form in FORMATS:
        assert render_text(cost_report([("x", empty)]), form)
    assert CostResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.slow
def test_every_optimizer_stays_below_its_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for size in ("tiny", "small"):
        assert (
            main(["cost", "--size", size, "--steps", "2", "--warm-up", "0", "--seconds", "0", "--runs-dir", size]) == 0
        )
        rows = load(next(Path(size).glob("cost-*.json"))).rows
        assert [row.optimizer for row in rows] == list(CONTENDERS)
        for row in rows:
            assert row.peak is not None, row.optimizer
            assert row.needed is not None
            assert row.peak <= row.needed <= FACTOR * row.peak, row.optimizer
            assert row.state == row.planned_state, row.optimizer
