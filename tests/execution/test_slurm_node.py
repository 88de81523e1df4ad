"""On a real SLURM cluster, tables equal those of a local run even if jobs are cancelled.

`benchmarks/slurm_node.py` starts a cluster for these tests.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import assert_same_tables
from tests.processes import MAIN


def _answers() -> bool:
    return shutil.which("sinfo") is not None and not subprocess.run(["sinfo"], capture_output=True).returncode


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed"),
    pytest.mark.skipif(not _answers(), reason="SLURM does not respond"),
]


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, "run", *words, "--device", "cpu", "--jobs", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)


def errors_of(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a run to end with this exit code; return what it wrote to standard error."""
    _, errors = process.communicate(timeout=900)
    assert process.returncode == code, errors[-3000:]
    return errors


def wait_for(true: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 600
    while not true():
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < until
        time.sleep(0.2)


def jobs(*states: str) -> list[str]:
    """Return the ids of the user's jobs called `optbench` in these states."""
    words = ["--me", "--noheader", "--array", "--name=optbench", f"--states={','.join(states)}", "--format=%i"]
    return subprocess.run(["squeue", *words], check=True, capture_output=True, text=True).stdout.split()


def parts(run: Path) -> list[Path]:
    """Return the cohorts written so far."""
    return list(run.glob("parts/[!.]*"))


def folders(runs: Path) -> list[str]:
    """Return the names of the SLURM folders next to the runs."""
    return [folder.name for folder in runs.glob(".slurm-*")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def here(folder: Path) -> Path:
    """Return the directory of the local run."""
    errors_of(started(folder, "smoke", "--name", "here"))
    return folder / "runs" / "here"


@pytest.fixture(autouse=True)
def _no_job_is_left() -> Iterator[None]:
    yield
    for job in jobs("PENDING", "RUNNING"):
        subprocess.run(["scancel", job], check=False)


def test_cancelled_jobs_are_replaced_and_the_tables_equal_those_of_a_local_run(folder: Path, here: Path) -> None:
    process = started(folder, "smoke", "--on", "slurm", "--name", "cancelled")
    run = folder / "runs/cancelled"
    wait_for(lambda: parts(run), process)
    first = jobs("RUNNING")
    assert len(first) == 2
    subprocess.run(["scancel", first[0]], check=True)
    wait_for(lambda: len(set(jobs("RUNNING")) - set(first)) == 1, process)
    errors = errors_of(process)
    assert f"a worker was lost (job {first[0]} was cancelled): " in errors
    assert "submitit" not in errors
    assert_same_tables(here, run)
    assert folders(run.parent) == []
    wait_for(lambda: not jobs("RUNNING", "COMPLETING"))
    assert first[1] in jobs("COMPLETED")  # the other job ended by itself


def test_an_interrupt_ends_all_jobs_and_the_run_can_be_resumed(folder: Path, here: Path) -> None:
    process = started(folder, "smoke", "--on", "slurm", "--name", "interrupted")
    run = folder / "runs/interrupted"
    wait_for(lambda: parts(run), process)
    process.send_signal(signal.SIGINT)
    errors_of(process, 130)
    assert folders(run.parent) == []
    wait_for(lambda: not jobs("PENDING", "RUNNING", "COMPLETING"))
    errors_of(started(folder, "--resume", str(run), "--on", "slurm"))
    assert_same_tables(here, run)


def test_jobs_of_a_killed_process_end_and_the_run_can_be_resumed_locally(folder: Path, here: Path) -> None:
    process = started(folder, "smoke", "--on", "slurm", "--name", "killed")
    run = folder / "runs/killed"
    wait_for(lambda: parts(run), process)
    process.kill()
    killed_at = time.monotonic()
    process.communicate()
    errors_of(started(folder, "--resume", str(run)))
    assert_same_tables(here, run)
    wait_for(lambda: not jobs("PENDING", "RUNNING", "COMPLETING"))
    assert time.monotonic() - killed_at < 240  # three minutes, and any further time that the resumed run took
