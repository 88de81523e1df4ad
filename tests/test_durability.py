"""Faults made to happen: a second process, damaged files, another torch, no memory. Nothing is lost or made up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import assert_same_tables, same_bits, small_suite, train_suite
from hypothesis import given, settings
from hypothesis import strategies as st

import optbench.engine
from optbench.data import Dataset
from optbench.engine import Setting, TrialResult, train
from optbench.errors import StoreError, UsageError
from optbench.plan import Cohort, Trial, cohorts, trials
from optbench.report import run_report, summarise
from optbench.report.console import render
from optbench.runner import Options, run
from optbench.schedule import Plan
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.store.lock import NAME, RunLock
from optbench.store.tables import TrialRow
from optbench.suite import Suite
from optbench.workers import _train_what_fits

pytestmark = pytest.mark.usefixtures("_train_here")

SUITE = small_suite(
    {"sgd": {"target": "sgd", "lr": 0.1}, "adam": {"target": "adam"}, "lion": {"target": "rmsprop"}},
    seeds=2,
    max_epochs=1,
    train_examples=200,
)


class Watching:
    """Keeps messages and the trials that were trained; presses Ctrl-C after so many cohorts."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.messages: list[str] = []
        self.trained: list[str] = []
        self.left = stop_after

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None: ...
    def progress(self, progress: object) -> None: ...
    def details(self, text: str) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        self.trained += [trial.id for trial, _ in rows]
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def do(path: Path, *, resume: bool = False, force: bool = False, stop_after: int | None = None) -> Watching:
    view = Watching(stop_after)
    options = Options("cpu", path.parent, path.name, jobs=1, resume=path if resume else None, force=force)
    run(SUITE, options, view)
    return view


@pytest.fixture(scope="module")
def whole(_train_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    do(path)
    return path


@pytest.fixture(scope="module")
def cut(_train_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, interrupted after two of three cohorts: with parts."""
    path = tmp_path_factory.mktemp("cut") / "run"
    do(path, stop_after=2)
    assert len(list((path / "parts").iterdir())) == 2
    return path


def copied(path: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", str(path), str(to)], check=True)
    return to / path.name


# Two processes.


def test_a_second_process_is_refused_with_the_owner(cut: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    before = (path / "run.json").read_bytes()
    lock = RunLock(path)
    with pytest.raises(StoreError, match=rf"is being written by process {os.getpid()} since 20\d\d-.*T") as refused:
        do(path, resume=True)
    assert "\n" not in str(refused.value)
    assert (path / "run.json").read_bytes() == before
    lock.release()
    lock.release()
    assert not (path / NAME).exists()


HOLDER = """
import sys, time
from pathlib import Path
from optbench.store.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {holder.pid} since"):
            RunLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / NAME).exists(), "it could not clean up"
    RunLock(tmp_path).release()


def test_a_finished_run_is_not_locked(whole: Path) -> None:
    assert not (whole / NAME).exists()


# Damaged files.


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def alter(file: Path) -> None:
    data = file.read_bytes()
    middle = len(data) // 4
    # Single bytes of a Parquet file may say nothing that is read; these are too many for that.
    file.write_bytes(data[:middle] + bytes(byte ^ 0x10 for byte in data[middle : middle + 60]) + data[middle + 60 :])


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, alter, remove])
@pytest.mark.parametrize("name", ["accuracy.parquet", "sha256.json"])
def test_a_damaged_part_is_named_and_trained_again(
    cut: Path, whole: Path, tmp_path: Path, damage: object, name: str
) -> None:
    path = copied(cut, tmp_path)
    part = sorted((path / "parts").iterdir())[0]
    lost = set(pd.read_parquet(part / "trials.parquet")["trial"])
    assert callable(damage)
    damage(part / name)
    with pytest.raises(StoreError, match=rf"parts/{part.name}/[\w.]+: (not what was written|unreadable)"):
        read_run(path)
    # The part's rows are in the merged tables as well, which were written when the run was interrupted.
    again = do(path, resume=True)
    assert [text for text in again.messages if text.startswith("damaged: ")]
    assert (path / "damaged").is_dir()
    assert lost.isdisjoint(again.trained), "the merged tables have them"
    assert_same_tables(whole, path)


@pytest.mark.parametrize("damage", [truncate, alter, remove])
def test_damaged_tables_are_named_and_what_they_held_is_trained_again(
    whole: Path, tmp_path: Path, damage: object
) -> None:
    path = copied(whole, tmp_path)
    assert callable(damage)
    damage(path / "accuracy.parquet")
    if damage is remove:  # a report shows the rest
        assert read_run(path).table("accuracy").num_rows == 0
    else:
        with pytest.raises(StoreError, match=r"accuracy\.parquet: unreadable"):
            read_run(path).table("accuracy")
    again = do(path, resume=True)
    assert len(again.messages) == 1
    assert "accuracy.parquet" in again.messages[0]
    assert sorted(again.trained) == sorted(trial.id for trial in trials(SUITE))
    assert_same_tables(whole, path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_altered_byte_is_ever_read_as_a_result(whole: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["accuracy", "curves", "trials"]))
    file = whole / f"{name}.parquet"
    good = file.read_bytes()
    expected = read_run(whole).table(name)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    try:
        file.write_bytes(bytes(bad))
        found = read_run(whole).table(name)
    except StoreError as error:
        found, named = None, str(file) in str(error)
    finally:
        file.write_bytes(good)
    assert named if found is None else found.equals(expected), "or else a byte that says nothing of the rows"


def test_a_run_of_another_version_is_refused_and_left_as_it_is(cut: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**record, "schema_version": 99}))
    (path / "accuracy.parquet").write_bytes(b"of another time")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(StoreError, match="needs schema version 1; 99 came"):
        do(path, resume=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


# Another torch, or device.


def test_another_torch_is_refused_without_force(cut: Path, whole: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    record = json.loads((path / "run.json").read_text())
    record["provenance"]["torch"] = "1.0.0"
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=rf"made with torch 1\.0\.0, and this is torch {torch.__version__[:4]}"):
        do(path, resume=True)
    assert not (path / NAME).exists()
    do(path, resume=True, force=True)
    assert_same_tables(whole, path)
    resumed = json.loads((path / "run.json").read_text())["resumed"]
    assert resumed[0]["provenance"]["torch"].startswith(torch.__version__.split("+")[0])


def test_another_kind_of_device_is_refused(cut: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    record = json.loads((path / "run.json").read_text())
    record["provenance"]["device"] = "cuda:0"
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="made with device cuda, and this is device cpu"):
        do(path, resume=True)


# Memory.


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't")]
)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_cohort_that_does_not_fit_is_halved_and_nothing_changes_by_it(
    monkeypatch: pytest.MonkeyPatch, mnist: Dataset, error: Exception, most: int
) -> None:
    suite = small_suite({"sgd": {"target": "sgd", "lr": [0.1, 0.2, 0.3]}}, seeds=2, max_epochs=1)
    sizes = []

    def little_memory(cohort: Cohort, setting: Setting, notify: object) -> list[TrialResult]:
        sizes.append(len(cohort.trials))
        if len(cohort.trials) > most:
            raise error
        return train(cohort, setting, lambda progress: None)

    monkeypatch.setattr(optbench.engine, "train", little_memory)
    (cohort,) = cohorts(trials(suite))
    found = _train_what_fits(cohort, setting_of(suite, mnist), lambda progress: None)
    assert [result.trial for result in found] == list(cohort.trials)
    assert max(size for size in sizes if size <= most) <= most < 6
    for result, expected in zip(found, train_suite(suite, mnist), strict=True):
        row = next(row for row in result.rows if isinstance(row, TrialRow))
        assert row.note is not None
        assert row.note.startswith("out of memory with 6 members together, trained ")
        vars(row)["note"] = None
        assert same_bits(result, expected)


def test_a_single_member_that_does_not_fit_fails(monkeypatch: pytest.MonkeyPatch, mnist: Dataset) -> None:
    def no_memory(cohort: Cohort, setting: Setting, notify: object) -> list[TrialResult]:
        raise MemoryError("none")

    monkeypatch.setattr(optbench.engine, "train", no_memory)
    (cohort,) = cohorts(trials(small_suite({"sgd": {"target": "sgd"}}, seeds=2)))
    with pytest.raises(MemoryError):
        _train_what_fits(cohort, setting_of(SUITE, mnist), lambda progress: None)


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch, mnist: Dataset) -> None:
    def broken(cohort: Cohort, setting: Setting, notify: object) -> list[TrialResult]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(optbench.engine, "train", broken)
    (cohort,) = cohorts(trials(small_suite({"sgd": {"target": "sgd"}}, seeds=2)))
    with pytest.raises(RuntimeError, match="shapes"):
        _train_what_fits(cohort, setting_of(SUITE, mnist), lambda progress: None)


def test_a_report_counts_the_notes(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    path = copied(whole, tmp_path)
    table = pd.read_parquet(path / "trials.parquet")
    results = read_results(read_run(path))
    for trial in table["trial"][table["optimizer"] == "adam"]:
        vars(results.rows[trial])["note"] = "out of memory with 6 members together, trained 3 at a time"
    render(run_report(summarise([results])), Console(width=200))
    assert (
        "adam: 2 of its trials: out of memory with 6 members together, trained 3 at a time." in capsys.readouterr().out
    )


def setting_of(suite: Suite, dataset: Dataset) -> Setting:
    return Setting.of(suite.experiments["small"], dataset, suite.seed, torch.device("cpu"))
