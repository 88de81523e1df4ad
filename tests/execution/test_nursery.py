"""Where workers come from: one import for all of them, and nothing left behind, whatever becomes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from optbench.errors import DeviceError
from optbench.execution import nursery as nurseries
from optbench.execution.nursery import FORKS, Nursery, early, nursery
from optbench.execution.session import Options, run
from tests.conftest import assert_same_tables, small_suite

forking = pytest.mark.skipif(not FORKS, reason="workers are spawned here")
ARMS = {"sgd": {"target": "sgd", "lr": 0.1}, "shampoo": {"target": "shampoo"}}


def started() -> list[psutil.Process]:
    """All processes below this one, without those of multiprocessing's own."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "resource_tracker" not in " ".join(command_of(process))]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has ended, and nobody has asked for its exit code yet
        return ["ended"]


@forking
def test_workers_are_forks_and_their_exit_codes_are_known() -> None:
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
        second.close()  # the parent has no more work
        b.join(10)
        assert b.exitcode == 0
    finally:
        raising.close()
    assert started() == before


@forking
def test_a_worker_is_there_where_the_process_that_forks_has_died_and_the_others_go_on() -> None:
    raising = Nursery()
    _, before = raising.start("cpu")
    (one,) = [child for child in started() if child.ppid() == os.getpid()]
    os.kill(one.pid, signal.SIGKILL)
    _, after = raising.start("cpu")
    assert after.is_alive()
    assert not before.is_alive()  # as far as can be told: it is ended
    raising.close()
    after.join(5)
    assert not after.is_alive()
    assert started() == []


@forking
def test_what_is_started_early_is_taken_once_and_ends_with_its_block_otherwise() -> None:
    with early():
        assert len(started()) == 1
        with early():
            assert len(started()) == 1
        mine = nursery()
        other = nursery()
        assert len(started()) == 2
        other.close()
    assert len(started()) == 1
    mine.close()
    with early(wanted=False):
        assert started() == []
    with contextlib.suppress(KeyboardInterrupt), early():
        raise KeyboardInterrupt
    assert started() == []


def test_a_refused_run_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        run(small_suite(ARMS), Options(device="cuda:99" if sys.platform != "darwin" else "cuda", runs_dir=tmp_path))
    assert started() == []


@forking
def test_spawned_and_forked_workers_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = small_suite(ARMS, seeds=2, max_epochs=1)
    forked = run(suite, Options(device="cpu", runs_dir=tmp_path, name="forked", jobs=2))
    monkeypatch.setattr(nurseries, "FORKS", False)
    spawned = run(suite, Options(device="cpu", runs_dir=tmp_path, name="spawned", jobs=2))
    assert_same_tables(forked.path, spawned.path)


@forking
def test_a_program_that_is_killed_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    program = "import sys; from optbench.cli import main; sys.exit(main(['run', 'smoke', '--device', 'cpu']))"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(process.pid).children(recursive=True)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
