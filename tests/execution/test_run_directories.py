"""Where runs are written: home directories, existing names, and unusable places. Each refusal is one line and leaves
nothing behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.cli import main
from optbench.errors import UsageError
from optbench.paths import user_path
from optbench.store import read_run, run_ids
from optbench.store.run import LONGEST_NAME
from tests.refusals import refusal
from tests.written_runs import rows_of, write_run

SUITE = """
name: places
seeds: 1
optimizers: {sgd: {target: sgd, lr: 0.1}}
experiments:
  one:
    tasks: {kind: permuted, count: 1}
    models: {net: {kind: mlp, hidden: [4]}}
    protocol: {max_steps: 2, train_examples: 64, validation_examples: 32, test_examples: 32, batch_size: 32}
"""
QUICK = ["--device", "cpu", "--jobs", "1", "--quiet"]


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _train_here: None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPTBENCH_DATA", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("s.yaml").write_text(SUITE, encoding="utf-8")


# Both forms of an option: a shell does not expand `~` after `=` or within quotes.
@pytest.mark.parametrize("form", [["--runs-dir", "~/r"], ["--runs-dir=~/r"]])
def test_a_tilde_in_a_runs_directory_is_expanded(form: list[str], tmp_path: Path) -> None:
    assert main(["run", "s.yaml", *form, "--name", "a", *QUICK]) == 0
    assert run_ids(tmp_path / "home" / "r") == ["a"]
    assert not Path("~").exists()
    for command in (["report", "a", *form], ["report", "~/r/a"], ["list", "runs", *form]):
        assert main(command) == 0
    for option in ("-o~/report.md", "--output=~/report.json"):
        assert main(["report", "~/r/a", option]) == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"r", "report.md", "report.json"}
    assert not Path("~").exists()


def test_a_tilde_in_a_figures_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.report.figures.figure_kinds", lambda studies: [])
    write_run(Path(), SUITE, lambda trial: rows_of(matrix=[[0.1], [0.9]]))
    assert main(["report", "--figures=~/figures"]) == 0
    assert not Path("~").exists()


def test_a_tilde_in_a_data_directory_is_expanded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SUITE.replace("tasks:", "dataset: kmnist\n    tasks:")
    Path("s.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "home" / "data").write_text("no folder")
    for words in (["--data-dir=~/data"], ["--data-dir", "~/data"]):
        assert str(tmp_path / "home" / "data") in refusal(capsys, tmp_path, "run", "s.yaml", *words, *QUICK)
    monkeypatch.setenv("OPTBENCH_DATA", "~/data")
    assert str(tmp_path / "home" / "data") in refusal(capsys, tmp_path, "run", "s.yaml", *QUICK)


OPTIONS = ("--runs-dir", "--data-dir")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", ["~nobody-at-all/x", "", "x\udcff"])
def test_an_invalid_path_is_refused(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, tmp_path, "run", "s.yaml", f"{option}={value}", *QUICK)
    words = {"": "expected a path, got nothing", "x\udcff": "expected text in UTF-8, got other bytes"}
    assert words.get(value, "there is no home directory ~nobody-at-all; give a full path") in said


@pytest.mark.parametrize("command", [["report", "-o"], ["report", "--figures"], ["tune", "s.yaml", "-o"]])
def test_an_invalid_output_path_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(Path(), SUITE, lambda trial: rows_of(matrix=[[0.1], [0.9]]))
    for value, words in (("~nobody-at-all/x", "there is no home directory"), ("", "expected a path, got nothing")):
        assert words in refusal(capsys, tmp_path, *command, value)
    if command[-1] == "-o":
        for value in ("/", ".", ".."):
            refusal(capsys, tmp_path, *command, value)


def test_an_empty_home_variable_counts_as_no_home_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("HOME", "")
    assert "there is no home directory ~" in refusal(capsys, tmp_path, "run", "s.yaml", "--runs-dir=~/x", *QUICK)
    Path("s.yaml").write_text(SUITE.replace("tasks:", "dataset: kmnist\n    tasks:"), encoding="utf-8")
    assert "give a full path, with --data-dir" in refusal(capsys, tmp_path, "run", "s.yaml", *QUICK)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_paths_without_a_tilde_are_unchanged(text: str) -> None:
    if not text.startswith("~"):
        assert user_path(text, "--x") == Path(text)
    else:
        with contextlib.suppress(UsageError):  # the user does not exist
            assert user_path(text, "--x").is_absolute()


def test_runs_started_in_the_same_second_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr("optbench.execution.directory.datetime.datetime", Stopped)
    for _ in range(3):
        assert main(["run", "s.yaml", *QUICK]) == 0
    names = [f"places-20260102T030405Z{more}" for more in ("", "-2", "-3")]
    assert run_ids(Path("runs")) == names
    for name in names:
        assert read_run(Path("runs", name)).record["run"] == name
        assert read_run(Path("runs", name)).record["status"] == "complete"


def test_a_given_name_is_never_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "s.yaml", "--name", "a", *QUICK]) == 0
    assert "this run already exists" in refusal(capsys, tmp_path, "run", "s.yaml", "--name", "a", *QUICK)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = refusal(capsys, tmp_path, "run", "s.yaml", *QUICK)
    assert said.startswith("runs: this file system has no locks")
    assert os.strerror(number) in said


def test_a_directory_too_deep_for_the_files_of_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory itself can be created, so without this check the first checkpoint would fail after its training."""
    most = os.pathconf("/", "PC_PATH_MAX")
    room = most - len(str(tmp_path)) - LONGEST_NAME
    deep = tmp_path.joinpath(*["d" * 200] * (room // 201), "d" * (room % 201 + 60))
    said = refusal(capsys, tmp_path, "run", "s.yaml", "--runs-dir", str(deep), "--name", "n" * 20, *QUICK)
    assert "File name too long" in said


def test_runs_work_in_a_directory_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    (tmp_path / "work" / "s.yaml").rename(tmp_path / "s.yaml")
    words = [sys.executable, "-m", "optbench", "run", "../s.yaml", "--name", "a", *QUICK]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(os.fsdecode(folder), "runs", "a", "run.json").read_text())["status"] == "complete"
    report = [sys.executable, "-m", "optbench", "report", "-o", "x.html"]
    assert subprocess.run(report, cwd=folder, capture_output=True, check=False).returncode == 0


def test_latest_is_refused_as_the_name_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "smoke", "--runs-dir", str(tmp_path / "runs"), "--name", "latest"]) == 2
    assert "--name latest: expected a name other than latest" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
