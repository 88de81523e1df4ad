"""Ctrl-C, SIGTERM and SIGKILL to a running program: what it prints, how soon it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from optbench.cli import main
from optbench.execution.nursery import FORKS
from optbench.store import read_run
from optbench.suite import dump_suite
from tests.conftest import small_suite
from tests.processes import MAIN

STUBBORN = """
import os, pathlib, signal, torch
class Stubborn(torch.optim.SGD):
    def step(self, closure=None):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(__file__).with_name(f"training-{os.getpid()}").touch()
        return super().step()
"""


@contextmanager
def training(folder: Path, first: str = "") -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Yield a program in the middle of long trials and the processes it started.

    These are two workers and, on Linux, the process they were forked from. The optimizer ignores SIGTERM.
    first: Python code that the program executes at the start.
    """
    (folder / "stubborn.py").write_text(STUBBORN)
    suite = small_suite({"it": {"target": "./stubborn.py:Stubborn"}}, seeds=2, max_epochs=1000, early_stopping=None)
    (folder / "suite.yaml").write_text(dump_suite(suite))
    words = ["run", "suite.yaml", "--name", "cut", "--device", "cpu", "--jobs", "2"]
    with subprocess.Popen(
        [sys.executable, "-c", first + MAIN, *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("training-*"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        yield process, [worker for worker in workers if "resource_tracker" not in " ".join(worker.cmdline())]


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=5)
    return not alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interruption_ends_a_run_within_five_seconds(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with training(tmp_path) as (process, workers):
        started = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - started
    assert process.returncode == 130
    assert seconds < 5
    assert output == ""
    assert errors.splitlines()[-1] == (
        "optbench: interrupted; 0 finished trials are kept; continue with: optbench run --resume runs/cut"
    )
    assert gone(workers)
    assert json.loads((tmp_path / "runs/cut/run.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "runs/cut/.lock").exists()
    assert main(["run", "--resume", str(tmp_path / "runs/cut"), "--dry-run"]) == 0
    assert "2 to train" in capsys.readouterr().out


def test_the_second_interruption_ends_a_run_immediately(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # On an idle machine the run may end while a second interrupt is still regarded as an echo of the first.
    with training(tmp_path, "from optbench.execution import interrupts; interrupts.ECHO = 0; ") as (process, workers):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        seconds = time.monotonic() - started
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 130
    assert seconds < 0.5
    assert errors.splitlines()[-1] == (
        "optbench: ended immediately; finished results are kept; continue with --resume runs/cut"
    )
    assert gone(workers)
    # The final status was not written, but the run can still be read and resumed.
    assert read_run(tmp_path / "runs/cut").record["status"] == "running"
    assert main(["run", "--resume", str(tmp_path / "runs/cut"), "--dry-run"]) == 0
    assert "2 to train" in capsys.readouterr().out


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with training(tmp_path) as (process, workers):
        assert len(workers) == 2 + FORKS
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert gone(workers)
