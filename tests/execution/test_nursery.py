"""Starting workers: all share one import, and no process is left behind however the program ends."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.process
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from optbench.cli import main
from optbench.errors import DeviceError, StoreError
from optbench.execution import nursery as nurseries
from optbench.execution.nursery import FORKS, Nursery, early, nursery
from optbench.execution.session import Options, run
from optbench.store.lock import RunLock
from tests.conftest import assert_same_tables, small_suite

forking = pytest.mark.skipif(not FORKS, reason="workers are spawned here")
ARMS = {"sgd": {"target": "sgd", "lr": 0.1}}
ASKED_OF_CUDA = """
import sys, torch
asked = []
for name in ("is_available", "device_count", "_lazy_init"):
    setattr(torch.cuda, name, lambda name=name: asked.append(name))
from optbench.execution.worker import prepare
prepare()
from optbench.isolation import ALL, Snapshot
with Snapshot(ALL).restored():
    pass
sys.exit(f"asked: {asked}" if asked else 0)
"""
INTERRUPTED = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
INTERRUPTED += "from optbench.cli import main; print('begun', flush=True); "
INTERRUPTED += "sys.exit(main(['run', 'smoke', '--device', 'cpu']))"


def started(program: int | None = None) -> list[psutil.Process]:
    """Return all child processes of this process or of a program, except multiprocessing's helpers."""
    found = psutil.Process(program).children(recursive=True)
    return [process for process in found if "resource_tracker" not in " ".join(command_of(process))]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # a zombie: the process has ended and was not waited for
        return ["ended"]


@forking
def test_workers_are_forked_and_their_exit_codes_are_known() -> None:
    before = started()
    raising = Nursery()
    try:
        (first, a), (second, b) = raising.start("cpu"), raising.start("cpu")
        (one,) = [process for process in started() if process not in before and process.ppid() == os.getpid()]
        assert len(one.children()) == 2
        assert a.is_alive()
        a.kill()
        a.join()
        assert (a.exitcode, a.is_alive()) == (-signal.SIGKILL, False)
        with pytest.raises(EOFError):
            first.recv()
        second.close()  # tells the worker that there is no more work
        b.join(10)
        assert b.exitcode == 0
    finally:
        raising.close()
    assert started() == before


@forking
def test_workers_can_start_and_continue_after_the_forking_process_has_died() -> None:
    raising = Nursery()
    _, before = raising.start("cpu")
    (one,) = [child for child in started() if child.ppid() == os.getpid()]
    os.kill(one.pid, signal.SIGKILL)
    _, after = raising.start("cpu")
    assert after.is_alive()
    assert before.is_alive()
    raising.close()
    for worker in (before, after):
        worker.kill()
        worker.join(5)
        assert not worker.is_alive()
    assert before.exitcode is None  # the exit code is lost with the process that forked the worker
    assert started() == []


@forking
def test_an_exit_code_can_be_requested_again() -> None:
    raising = Nursery()
    try:
        connection, worker = raising.start("cpu")
        assert isinstance(worker, nurseries._Forked)
        connection.close()
        worker.join(10)
        (forking,) = raising._forking
        assert forking.exit_code(worker.pid) == worker.exitcode == 0
        worker.kill()  # signals no process, even if its id has been reused
        assert worker.exitcode == 0
        with pytest.raises(OSError, match="child"):
            forking.exit_code(os.getpid())
    finally:
        raising.close()


def refused(*_: object) -> None:
    raise BlockingIOError(11, "Resource temporarily unavailable")


@forking
@pytest.mark.parametrize("what", ["socketpair", "process", "handle"])
def test_workers_are_spawned_if_the_forking_process_cannot_be_started(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        owner, name = {
            "socketpair": (nurseries.socket, "socketpair"),
            "process": (nurseries, "spawn"),
            "handle": (nurseries.os, "pidfd_open"),
        }[what]
        patch.setattr(owner, name, refused)
        raising = Nursery()
    connection, worker = raising.start("cpu")
    assert isinstance(worker, multiprocessing.process.BaseProcess)
    connection.close()
    worker.join(60)
    assert worker.exitcode == 0
    raising.close()
    assert started() == []


@forking
def test_a_failed_fork_is_reported_and_the_next_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of the forking process runs in this process, on a socket made here."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(nurseries, "heedless", lambda: None)
    monkeypatch.setattr("optbench.execution.worker.prepare", lambda: None)
    monkeypatch.setattr(os, "fork", refused)
    with ours:
        for number in range(2):
            with Path(os.devnull).open() as file:
                socket.send_fds(ours, [json.dumps([number, "fork", "cpu"]).encode()], [file.fileno()])
        ours.shutdown(socket.SHUT_WR)
        with theirs:
            nurseries._fork_on_request(theirs)
        answers = [json.loads(ours.recv(nurseries.PACKET)) for _ in range(2)]
    assert answers == [[number, "[Errno 11] Resource temporarily unavailable"] for number in range(2)]


@forking
def test_only_cpu_workers_are_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for devices in (["cuda:0"], ["cpu", "cuda:0"], ["mps"]):
        nursery(devices).close()
        assert started() == []
    driver = tmp_path / "nvidiactl"
    monkeypatch.setattr(nurseries, "DRIVERS", (driver,))
    with early("auto"):
        assert len(started()) == 1
        nursery(["cuda:0"]).close()  # does not use the process started early
        assert len(started()) == 1
    driver.touch()
    for device in ("auto", "cuda", "cuda:1"):
        with early(device):
            assert started() == []
    with early("cpu"):
        assert len(started()) == 1
    assert started() == []


def test_cuda_is_not_initialised_before_a_worker_has_a_device() -> None:
    done = subprocess.run([sys.executable, "-c", ASKED_OF_CUDA], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@forking
def test_a_process_started_early_is_used_once_or_ends_with_its_block() -> None:
    with early("cpu"):
        assert len(started()) == 1
        with early("cpu"):
            assert len(started()) == 1
        mine = nursery(["cpu"])
        other = nursery(["cpu"])
        assert len(started()) == 2
        other.close()
    assert len(started()) == 1
    mine.close()
    with early("cpu", wanted=False):
        assert started() == []
    with contextlib.suppress(KeyboardInterrupt), early("cpu"):
        raise KeyboardInterrupt
    assert started() == []


def test_a_refused_run_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        run(small_suite(ARMS), Options(device="cuda:99" if sys.platform != "darwin" else "cuda", runs_dir=tmp_path))
    assert started() == []
    (tmp_path / "taken").mkdir()
    lock = RunLock(tmp_path / "taken")  # locks of two open files conflict even within one process
    for _ in range(2):
        with pytest.raises(StoreError, match="being written by") as refusal:
            run(small_suite(ARMS), Options(device="cpu", runs_dir=tmp_path, resume=tmp_path / "taken"))
        assert started() == [], refusal  # keeps the objects of the frames alive
    lock.release()


@forking
def test_spawned_and_forked_workers_give_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = small_suite(ARMS, seeds=2, max_epochs=1)
    forked = run(suite, Options(device="cpu", runs_dir=tmp_path, name="forked", jobs=2))
    monkeypatch.setattr(nurseries, "FORKS", False)
    spawned = run(suite, Options(device="cpu", runs_dir=tmp_path, name="spawned", jobs=1))
    assert_same_tables(forked.path, spawned.path)


@forking
def test_a_program_killed_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    program = "import sys; from optbench.cli import main; sys.exit(main(['run', 'smoke', '--device', 'cpu']))"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (children := started(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.5])
def test_an_interrupt_while_the_program_starts_shows_no_traceback(tmp_path: Path, seconds: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert said == "optbench: interrupted\n"
    assert process.returncode == 130


@forking
def test_a_refused_command_starts_no_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(nurseries, "Nursery", begin)
    for command in (["run", "nosuch"], ["tune", "nosuch"], ["run", "--resume", "nosuch"], ["run"]):
        assert main(command) == 2
        assert "Traceback" not in capsys.readouterr().err
