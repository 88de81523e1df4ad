"""Injected faults (a second process, damaged files, another torch, too little memory) do not lose or add results."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optbench.execution.work
from optbench.engine import TrialResult, Workspace, train
from optbench.errors import StoreError, UsageError
from optbench.execution.schedule import Plan, make_plan
from optbench.execution.session import Options, run
from optbench.plan import Cohort, Trial, trials
from optbench.report import run_report
from optbench.report.formats.terminal import show
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.store.damaged import set_damaged_aside
from optbench.store.interim import drop_begun, find_begun
from optbench.store.lock import NAME, RunLock
from optbench.store.tables import TrialRow
from tests.conftest import assert_same_tables, small_suite, tables
from tests.reports import summarise

pytestmark = pytest.mark.usefixtures("_train_here")

SUITE = small_suite(
    {"sgd": {"target": "sgd", "lr": 0.1}, "adam": {"target": "adam"}, "lion": {"target": "rmsprop"}},
    seeds=2,
    max_epochs=1,
    train_examples=200,
)


class Watching:
    """A view that keeps messages and trained trials, and raises KeyboardInterrupt after `stop_after` cohorts."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.messages: list[str] = []
        self.trained: list[str] = []
        self.left = stop_after

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None: ...
    def progress(self, progress: object) -> None: ...
    def details(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

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
    """Return the directory of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    do(path)
    return path


@pytest.fixture(scope="module")
def cut(_train_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run interrupted after two of three cohorts, which has parts."""
    path = tmp_path_factory.mktemp("cut") / "run"
    do(path, stop_after=2)
    assert len(list((path / "parts").iterdir())) == 2
    return path


def copied(path: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", str(path), str(to)], check=True)
    return to / path.name


# Two processes


def test_a_second_process_is_refused_and_the_owner_is_named(cut: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    before = (path / "run.json").read_bytes()
    lock = RunLock(path)
    with pytest.raises(StoreError, match=rf"is being written by process {os.getpid()} \(since 20\d\d-.*T") as refused:
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
        with pytest.raises(StoreError, match=rf"process {holder.pid} \(since"):
            RunLock(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / NAME).exists(), "a killed process cannot remove its lock"
    RunLock(tmp_path).release()


def test_a_finished_run_is_not_locked(whole: Path) -> None:
    assert not (whole / NAME).exists()


# Damaged files


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def alter(file: Path) -> None:
    data = file.read_bytes()
    middle = len(data) // 4
    # A single byte of a Parquet file may be padding that is never read, so many bytes are altered.
    file.write_bytes(data[:middle] + bytes(byte ^ 0x10 for byte in data[middle : middle + 60]) + data[middle + 60 :])


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, alter, remove])
@pytest.mark.parametrize("name", ["accuracy.parquet", "sha256.json"])
def test_a_damaged_part_is_reported_and_set_aside(
    cut: Path, whole: Path, tmp_path: Path, damage: object, name: str
) -> None:
    path = copied(cut, tmp_path)
    part = sorted((path / "parts").iterdir())[0]
    lost = set(pd.read_parquet(part / "trials.parquet")["trial"])
    assert callable(damage)
    damage(part / name)
    with pytest.raises(StoreError, match=rf"parts/{part.name}/[\w.]+: (damaged: its checksum differs|unreadable)"):
        read_run(path)
    # The merged tables, written when the run was interrupted, also have the rows of the part.
    again = do(path, resume=True)
    assert [text for text in again.messages if text.startswith("damaged: ")]
    assert (path / "damaged").is_dir()
    assert lost.isdisjoint(again.trained), "trials in the merged tables are not trained again"
    assert_same_tables(whole, path)


@pytest.mark.parametrize("damage", [truncate, alter, remove])
def test_damaged_tables_are_reported_and_their_trials_are_trained_again(
    whole: Path, tmp_path: Path, damage: object
) -> None:
    path = copied(whole, tmp_path)
    assert callable(damage)
    damage(path / "accuracy.parquet")
    if damage is remove:  # a missing table is read as empty, so that reports can show the rest
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
def test_a_flipped_byte_is_refused_or_does_not_change_the_rows(whole: Path, data: st.DataObject) -> None:
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
    assert named if found is None else found.equals(expected), "the byte does not affect the rows"


def test_a_run_of_another_schema_version_is_refused_and_left_unchanged(cut: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**record, "schema_version": 99}))
    (path / "accuracy.parquet").write_bytes(b"of another time")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(StoreError, match="expected schema version 1, got 99"):
        do(path, resume=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


# Another torch or device


def test_another_torch_version_is_refused_without_force(cut: Path, whole: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    record = json.loads((path / "run.json").read_text())
    record["provenance"]["torch"] = "1.0.0"
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=rf"expected torch 1\.0\.0, .*got torch {torch.__version__[:4]}"):
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
    with pytest.raises(UsageError, match="expected device cuda, as in the earlier part of the run, got device cpu"):
        do(path, resume=True)


def test_other_cpu_instructions_are_refused_because_initial_weights_depend_on_them(cut: Path, tmp_path: Path) -> None:
    path = copied(cut, tmp_path)
    record = json.loads((path / "run.json").read_text())
    assert record["provenance"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    record["provenance"]["cpu_capability"] = "SSE9"
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"expected CPU instructions SSE9, .*got CPU instructions [A-Z]"):
        do(path, resume=True)


# Between two tasks

LONG = small_suite(
    {
        "sgd": {"target": "sgd", "lr": [0.1, 0.05], "momentum": 0.9},
        "adam": {"target": "adam"},
    },
    tasks={"kind": "permuted", "count": 3},
    seeds=2,
    max_epochs=1,
    train_examples=200,
)


class Cut:
    """Write interim states after every task, and raise KeyboardInterrupt after a number of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        self.begun: list[dict[str, int]] = []
        write, original = optbench.execution.work.write_interim, optbench.execution.work.train

        def written(*given: Any) -> None:
            write(*given)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        def trained(cohort: Cohort, workspace: Workspace, notify: Any, keep: Any, begun: Any) -> list[TrialResult]:
            self.begun.append({trial: begun[trial].task for trial in begun})
            return original(cohort, workspace, notify, keep, begun)

        monkeypatch.setattr(optbench.execution.work, "write_interim", written)
        monkeypatch.setattr(optbench.execution.work, "train", trained)
        monkeypatch.setattr(optbench.execution.work, "LEAST_SECONDS", 0.0)
        monkeypatch.setattr(optbench.execution.work, "SHARE", 1e9)

    def run(self, path: Path, *, after: int = 10**9, resume: bool = True) -> Watching:
        view = Watching()
        self.left, self.begun = after, []
        run(LONG, Options("cpu", path.parent, path.name, jobs=1, resume=path if resume else None), view)
        return view


@pytest.fixture(scope="module")
def whole_long(_train_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "run"
    run(LONG, Options("cpu", path.parent, path.name, jobs=1), Watching())
    assert not (path / "interim").exists()
    return path


def test_trials_resume_after_their_last_finished_task(
    monkeypatch: pytest.MonkeyPatch, whole_long: Path, tmp_path: Path
) -> None:
    path, cut = tmp_path / "run", Cut(monkeypatch)
    cut.run(path, after=1, resume=False)
    (part,) = (path / "interim").iterdir()
    first = [record["trials"][0] for record in json.loads((part / "members.json").read_text())]
    assert read_run(path).table("trials").num_rows == 0
    assert len(first) == 4
    (part / ".DS_Store").write_text("a file manager was here")

    view = cut.run(path, after=1)
    assert "continuing 4 trials from the end of the last finished task" in view.messages
    assert [dict.fromkeys(first, 1)] == [begun for begun in cut.begun if begun]
    assert json.loads((path / "run.json").read_text())["status"] == "interrupted"

    view = cut.run(path)
    begun = [found for found in cut.begun if found]
    assert len(view.trained) == 6
    assert begun == [dict.fromkeys(first, 2)]
    assert_same_tables(whole_long, path)
    assert not (path / "interim").exists()
    record = json.loads((path / "run.json").read_text())
    assert [len(entry["left"]) for entry in record["resumed"]] == [6, 6]
    assert [entry["after_task"] for entry in record["resumed"]] == [dict.fromkeys(first, 1), dict.fromkeys(first, 2)]
    for entry in record["resumed"]:
        assert entry["provenance"]["torch"] == record["provenance"]["torch"]


@pytest.mark.parametrize("name", ["members.json", "0.pt", "accuracy.parquet", "sha256.json"])
def test_a_damaged_interim_state_is_reported_and_its_trials_restart(
    name: str, monkeypatch: pytest.MonkeyPatch, whole_long: Path, tmp_path: Path
) -> None:
    path, cut = tmp_path / "run", Cut(monkeypatch)
    cut.run(path, after=1, resume=False)
    (part,) = (path / "interim").iterdir()
    data = bytearray((part / name).read_bytes())
    data[len(data) // 2] ^= 1
    (part / name).write_bytes(data)
    view = cut.run(path)
    (message,) = [text for text in view.messages if text.startswith("damaged: ")]
    assert str(part / name) in message or name == "sha256.json"
    assert not any(cut.begun)
    assert_same_tables(whole_long, path)


def test_notes_of_interrupted_trials_are_kept(
    monkeypatch: pytest.MonkeyPatch, whole_long: Path, tmp_path: Path
) -> None:
    path, cut = tmp_path / "run", Cut(monkeypatch)
    original = optbench.execution.work.write_interim

    def noted(folder: Path, cohort: str, kept: Any, given: Any) -> None:
        for one in kept:
            one.record["notes"] = ["tried again"]
        original(folder, cohort, kept, given)

    monkeypatch.setattr(optbench.execution.work, "write_interim", noted)
    cut.run(path, after=1, resume=False)
    cut.run(path)
    notes = tables(path)["trials"].note
    assert list(notes.dropna().unique()) == ["tried again"]
    assert notes.notna().sum() == 4


@pytest.mark.parametrize("error", [MemoryError("no room for another copy"), ValueError("what JSON does not have")])
def test_failing_to_write_an_interim_state_does_not_fail_a_trial(
    error: Exception, monkeypatch: pytest.MonkeyPatch, whole_long: Path, tmp_path: Path
) -> None:
    def full(*given: Any) -> None:
        raise error

    monkeypatch.setattr(optbench.execution.work, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(optbench.execution.work, "write_interim", full)
    run(LONG, Options("cpu", tmp_path, "run", jobs=1), Watching())
    assert_same_tables(whole_long, tmp_path / "run")


@pytest.mark.parametrize(
    "text",
    ["", "no", "{}", "[1]", '[{"trials": []}]', '[{"trials": ["x"], "task": "1", "counters": {"status": "ok"}}]'],
)
def test_an_invalid_interim_state_is_reported_and_ignored(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, cut = tmp_path / "run", Cut(monkeypatch)
    cut.run(path, after=1, resume=False)
    (part,) = (path / "interim").iterdir()
    (part / "members.json").write_text(text)
    sums = json.loads((part / "sha256.json").read_text())
    sums["members.json"] = hashlib.sha256(text.encode()).hexdigest()
    (part / "sha256.json").write_text(json.dumps(sums))
    (path / "interim" / "Thumbs.db").write_text("")
    (path / "interim" / "stray").mkdir()
    assert find_begun(path / "interim") == {}
    drop_begun(path / "interim", {"x"}.__contains__)
    assert len(make_plan(LONG, path).left) == 6
    messages = set_damaged_aside(path)
    assert sum(str(part / "members.json") in message for message in messages) == 1
    assert list((path / "interim").iterdir()) == []


def test_a_failed_trial_is_restarted_from_the_beginning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, cut = tmp_path / "run", Cut(monkeypatch)
    cut.run(path, after=1, resume=False)
    (part,) = (path / "interim").iterdir()
    records = json.loads((part / "members.json").read_text())
    records[0]["counters"]["status"] = "failed"
    (part / "members.json").write_text(json.dumps(records))
    assert set(find_begun(path / "interim")) == {trial for record in records[1:] for trial in record["trials"]}
    drop_begun(path / "interim", {trial for record in records[1:] for trial in record["trials"]}.__contains__)
    assert part.exists(), "one of its trials is unfinished"


def test_trials_restart_when_the_users_optimizer_has_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = tmp_path / "theirs.py"
    code.write_text("import torch\nclass Theirs(torch.optim.SGD):\n    pass\n")
    suite = small_suite({"theirs": {"target": f"{code}:Theirs", "lr": 0.1}}, seeds=1, train_examples=200)
    for change, begun in (("", 1), ("# another\n", 0)):
        cut = Cut(monkeypatch)
        path = tmp_path / f"run{begun}"
        cut.left = 1
        run(suite, Options("cpu", tmp_path, path.name, jobs=1), Watching())
        code.write_text(code.read_text() + change)
        cut.begun, cut.left = [], 10**9
        run(suite, Options("cpu", resume=path, jobs=1, force=bool(change)), Watching())
        assert [len(found) for found in cut.begun] == [begun]


def test_an_optimizer_whose_state_cannot_be_saved_still_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its interim state records only the reason, so that an interruption costs time but no results."""
    (tmp_path / "theirs.py").write_text(
        "import itertools, torch\n"
        "class Theirs(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.1):\n"
        "        super().__init__(params, lr=lr)\n"
        "        self.clock = itertools.count()\n"
        "    def step(self, closure=None):\n"
        "        next(self.clock)\n"
        "        return super().step()\n"
    )
    cut = Cut(monkeypatch)
    suite = small_suite({"theirs": {"target": f"{tmp_path}/theirs.py:Theirs"}}, seeds=1, train_examples=200)
    outcome = run(suite, Options("cpu", tmp_path, "run", jobs=1), Watching())
    assert outcome.statuses == {"ok": 1}
    assert cut.left == 10**9 - 1, "one state was written, with the reason why the optimizer cannot be saved"


# Memory


RATES = small_suite({"sgd": {"target": "sgd", "lr": [0.1, 0.2, 0.3]}}, seeds=2, max_epochs=1, train_examples=200)


@pytest.fixture(scope="module")
def ample_memory(_train_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of one cohort with six members and enough memory."""
    path = tmp_path_factory.mktemp("roomy") / "run"
    run(RATES, Options("cpu", path.parent, path.name, jobs=1), Watching())
    return path


def sizes_tried(monkeypatch: pytest.MonkeyPatch, path: Path, most: int, error: Exception) -> list[int]:
    """Run the suite, raising `error` for more than `most` members; return the cohort sizes that were tried."""
    sizes = []

    def little_memory(cohort: Cohort, *others: Any) -> list[TrialResult]:
        sizes.append(len(cohort.trials))
        if len(cohort.trials) > most:
            raise error
        return train(cohort, *others)

    monkeypatch.setattr(optbench.execution.work, "train", little_memory)
    run(RATES, Options("cpu", path.parent, path.name, jobs=1), Watching())
    return sizes


@pytest.mark.parametrize(
    ("error", "most", "tried"),
    [
        (MemoryError(), 1, [6, 3, 1, 2, 1, 1, 3, 1, 2, 1, 1]),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, [6, 3, 1, 2, 3, 1, 2]),
        (RuntimeError("DefaultCPUAllocator: can't"), 3, [6, 3, 3]),
    ],
)
def test_halving_a_cohort_that_does_not_fit_leaves_the_results_unchanged(
    monkeypatch: pytest.MonkeyPatch, ample_memory: Path, tmp_path: Path, error: Exception, most: int, tried: list[int]
) -> None:
    path = tmp_path / "run"
    assert sizes_tried(monkeypatch, path, most, error) == tried
    expected, found = tables(ample_memory), tables(path)
    assert set(found["trials"].pop("note")) == {"out of memory with 6 members together, trained in smaller cohorts"}
    assert expected["trials"].pop("note").isna().all()
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected[name], check_exact=True)


def test_a_cohort_that_runs_out_of_memory_in_a_step_is_halved(
    monkeypatch: pytest.MonkeyPatch, ample_memory: Path, tmp_path: Path
) -> None:
    """Most optimizers allocate their state in the first step."""
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *given: Any) -> Any:
        if sum(map(len, alive)) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *given)

    alive: list[tuple[Trial, ...]] = []

    def watched(cohort: Cohort, *others: Any) -> list[TrialResult]:
        alive[:] = [cohort.trials]
        return train(cohort, *others)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    monkeypatch.setattr(optbench.execution.work, "train", watched)
    run(RATES, Options("cpu", tmp_path, "run", jobs=1), Watching())
    expected, found = tables(ample_memory), tables(tmp_path / "run")
    assert set(found["trials"].pop("note")) == {"out of memory with 6 members together, trained in smaller cohorts"}
    expected["trials"].pop("note")
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected[name], check_exact=True)


@pytest.mark.parametrize(
    ("error", "error_type", "message"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate\nmore"),
            "OutOfMemory",
            "not enough memory to train one trial alone: DefaultCPUAllocator: can't allocate",
        ),
        (RuntimeError("mat1 and mat2 shapes"), "RuntimeError", "mat1 and mat2 shapes"),
    ],
)
def test_a_trial_fails_if_it_does_not_fit_alone_or_raises_another_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, error_type: str, message: str
) -> None:
    sizes = sizes_tried(monkeypatch, tmp_path / "run", 0, error)
    assert sizes == ([6] if error_type == "RuntimeError" else [6, 3, 1, 2, 1, 1, 3, 1, 2, 1, 1])
    found = tables(tmp_path / "run")["trials"]
    assert set(found.status) == {"failed"}
    assert set(zip(found.error_type, found.error_message, strict=True)) == {(error_type, message)}


def test_a_report_counts_the_trials_with_a_note(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    path = copied(whole, tmp_path)
    table = pd.read_parquet(path / "trials.parquet")
    results = read_results(read_run(path))
    for trial in table["trial"][table["optimizer"] == "adam"]:
        vars(results.rows[trial])["note"] = "out of memory with 6 members together, trained 3 at a time"
    show(run_report(summarise([results])), Console(width=200))
    assert (
        "adam: 2 of its trials: out of memory with 6 members together, trained 3 at a time." in capsys.readouterr().out
    )
