"""SLURM jobs, run by submitit's local executor, give the tables of a local run, even if a job is lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from optbench.cli import main
from optbench.execution import mailbox, slurm_job
from optbench.execution.agent import Hello
from optbench.execution.backend import Died
from optbench.execution.mailbox import Mailbox, Pulse
from optbench.execution.slurm_job import IN, OUT, POLL, PULSE, SETTLE, Ending, serve
from optbench.suite import dump_suite
from tests.conftest import PoolHere, assert_same_tables, small_suite

installed = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
SUITE = small_suite({"sgd": {"target": "sgd"}}, seeds=2, train_examples=200, max_epochs=1)
WORDS = ["--device", "cpu", "--quiet"]
ON = ["--on", "slurm", "--set-on", "cluster=local"]


@installed
@pytest.mark.filterwarnings(
    "ignore:subprocess [0-9]+ is still running:ResourceWarning"
)  # submitit's process, which ends by itself
def test_a_job_gives_the_same_tables_as_a_local_run_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite.yaml").write_text(dump_suite(SUITE))
    words = ["run", str(tmp_path / "suite.yaml"), "--runs-dir", str(tmp_path / "runs"), *WORDS]
    assert main([*words, "--name", "there", *ON, "--set-on", "max_jobs=1"]) == 0
    monkeypatch.setattr("optbench.execution.session.Pool", PoolHere)
    monkeypatch.setattr("optbench.execution.nursery.FORKS", False)
    assert main([*words, "--name", "here"]) == 0
    assert_same_tables(tmp_path / "runs/here", tmp_path / "runs/there")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["here", "there"]


@installed
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["partitoin=gpu"], "--set-on partitoin: unknown setting 'partitoin'; did you mean 'partition'?"),
        (["timeout_min=soon"], "--set-on timeout_min=soon: expected a whole number of at least 1, got soon"),
        (["max_jobs=0"], "--set-on max_jobs=0: expected a whole number of at least 1, got 0"),
        (["nodes=2"], "--set-on: expected one task on one node, got nodes=2 and tasks_per_node=1"),
        (["partition"], "--set-on partition: expected NAME=VALUE, got partition"),
        (["cluster=pbs"], "--set-on cluster=pbs: expected slurm or local, got pbs"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(
    settings: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for setting in ("cluster=local", *settings) for word in ("--set-on", setting)]
    assert main(["run", "smoke", "--on", "slurm", *given, "--runs-dir", str(tmp_path), *WORDS]) == 2
    assert capsys.readouterr().err.startswith(f"optbench: {said}")
    assert list(tmp_path.iterdir()) == []


@installed
def test_missing_slurm_is_reported_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["run", "smoke", "--on", "slurm", "--runs-dir", str(tmp_path), *WORDS]) == 2
    assert capsys.readouterr().err == (
        "optbench: --on slurm: sbatch was not found; start optbench on a login node of the cluster\n"
    )


def test_settings_of_jobs_require_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "smoke", "--set-on", "partition=gpu", "--dry-run"]) == 2
    assert "--set-on partition=gpu: expected --on slurm, got --on local" in capsys.readouterr().err


# Messages passed as files


def test_messages_arrive_complete_in_order_and_once(tmp_path: Path) -> None:
    sender, receiver = Mailbox(tmp_path), Mailbox(tmp_path)
    for number in range(12):
        sender.put(number)
    (tmp_path / ".00000012").write_bytes(b"half of")
    assert receiver.take() == list(range(12))
    assert receiver.take() == []
    sender.put("more")
    assert receiver.take() == ["more"]


class StubAgent:
    """An agent that only returns the messages it was given."""

    def __init__(self, device: str) -> None:
        self.given: list[Any] = []

    def give(self, *arguments: object) -> None:
        self.given.append(arguments)

    def receive(self, seconds: float) -> list[Any]:
        time.sleep(0.01)
        found, self.given = self.given, []
        return found

    def close(self) -> None: ...


class DyingAgent(StubAgent):
    """An agent whose worker process dies."""

    def receive(self, seconds: float) -> list[Any]:
        return ["progress", Died("SIGTERM")]


@pytest.mark.parametrize("how", ["told", "silent", "gone"])
def test_a_job_ends_with_its_run(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "BEAT", 0.0)
    monkeypatch.setattr(slurm_job, "FileAgent", StubAgent)
    monkeypatch.setattr(slurm_job, "SILENT", 0.5)
    place = tmp_path / "run" / "worker"
    for name in (IN, OUT):
        (place / name).mkdir(parents=True)
    parent = Pulse(place.parent / PULSE)
    parent.beat()
    commands, answers = Mailbox(place / IN), Mailbox(place / OUT)
    thread = threading.Thread(target=serve, args=(str(place), "cpu"))
    thread.start()
    commands.put(("give", ("unit", "job", {})))
    found: list[Any] = []
    until = time.monotonic() + 5
    while not found and time.monotonic() < until:
        parent.beat()
        found += answers.take()
    assert found == [("unit", "job", {})]
    assert thread.is_alive()
    if how == "told":
        commands.put(("close", ()))
    elif how == "gone":
        place.parent.rename(tmp_path / "moved")
    thread.join(5)
    assert not thread.is_alive()
    if how != "gone":
        assert answers.take() == [Ending(told=how == "told")]


@pytest.mark.parametrize("signalled", [False, True])
def test_a_worker_killed_by_the_signal_to_its_job_is_not_reported_as_died(
    signalled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_job, "FileAgent", DyingAgent)
    monkeypatch.setattr(slurm_job, "SETTLE", 0.0)
    place = tmp_path / "run" / "worker"
    for name in (IN, OUT):
        (place / name).mkdir(parents=True)
    Pulse(place.parent / PULSE).beat()
    Mailbox(place / IN).put(("give", ()))
    looks = iter([False, signalled, True])  # before the worker dies, when it dies, and at the end
    serve(str(place), "cpu", lambda: next(looks))
    died = [] if signalled else [Died("SIGTERM")]
    assert Mailbox(place / OUT).take() == ["progress", *died, Ending(told=False)]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_signals_to_a_whole_job_are_not_reported_as_the_death_of_its_worker(tmp_path: Path) -> None:
    place = tmp_path / "run" / "worker"
    for name in (IN, OUT):
        (place / name).mkdir(parents=True)
    parent = Pulse(place.parent / PULSE)
    parent.beat()
    answers = Mailbox(place / OUT)
    code = f"from optbench.execution.slurm_job import run_job; run_job({str(place)!r}, 'cpu')"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    found: list[Any] = []
    until = time.monotonic() + 120
    try:
        while not (found or process.poll() is not None) and time.monotonic() < until:
            time.sleep(0.05)
            found += answers.take()
        os.killpg(process.pid, signal.SIGUSR2)
        time.sleep(SETTLE + 4 * POLL)  # if the signal had killed the worker, this would have been reported by then
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    found += answers.take()
    assert [type(message) for message in found] == [Hello, Ending]
    assert found[1] == Ending(told=False)


def test_silence_is_measured_by_the_watchers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(mailbox.time, "monotonic", lambda: now[0])
    own, watched = Pulse(tmp_path / PULSE), Pulse(tmp_path / PULSE)
    own.beat()
    assert watched.silence() == 0.0
    now[0] += 90
    assert watched.silence() == 90.0
    own.beat()
    assert watched.silence() == 0.0


# This test takes minutes.


@installed
@pytest.mark.slow
def test_a_cancelled_job_is_replaced_and_the_tables_are_the_same(tmp_path: Path) -> None:
    code = "import sys; from optbench.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", "smoke", "--device", "cpu", "--jobs", "2", "--name"]
    subprocess.run([*command, "here", "--quiet"], cwd=tmp_path, check=True, capture_output=True)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "there", *ON], cwd=tmp_path, **pipes)
    run = tmp_path / "runs/there"
    while not list(run.glob("parts/[!.]*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    jobs = [job for job in psutil.Process(process.pid).children() if any("submitit" in word for word in job.cmdline())]
    assert len(jobs) == 2
    for one in (*jobs[0].children(recursive=True), jobs[0]):
        one.kill()
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "a worker was lost (job " in errors
    assert_same_tables(tmp_path / "runs/here", run)
