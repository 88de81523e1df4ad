"""What SLURM knows of a run's jobs, and how they are cancelled.

`squeue` is asked, since `sacct`, which submitit asks, has no answer on clusters without an accounting database.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optbench.errors import WorkerError

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo")
ENDED = {
    "BOOT_FAIL": "lost its node",
    "CANCELLED": "was cancelled",
    "COMPLETED": "has ended",
    "DEADLINE": "reached its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "lost its node",
    "OUT_OF_MEMORY": "ran out of memory (mem_gb)",
    "PREEMPTED": "was preempted",
    "REVOKED": "was revoked",
    "TIMEOUT": "reached its time limit (timeout_min)",
}
"""States of jobs that run no more, and how they are said; others are of jobs that wait, run or are about to end."""
WAITING = ("PENDING", "CONFIGURING", "SUSPENDED", "STOPPED")
ANSWER = 60.0
"""Seconds that SLURM has to answer a question."""
TOLD = 3.0
"""Seconds that SLURM has to take a command; if they do not suffice, it continues on its own."""
BEGINNINGS = re.compile(r"^(s\w+: )?((error|fatal): )?(Batch job submission failed: )?")
"""How a line on standard error begins: with the command's name, and what went wrong in general."""
OF_SLURM = ("srun:", "slurmstepd:")
"""How lines in a job's log begin that say less than the program's own."""


@dataclass(frozen=True)
class State:
    """The state of a job in SLURM's words. reason: why it waits, say."""

    name: str
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        return self.name in ENDED

    @property
    def waits(self) -> bool:
        """True if the job has not begun, or has been stopped for now."""
        return self.name in WAITING

    def describe_wait(self) -> str:
        """`pending (Resources)`."""
        return f"{self.name.lower()} ({self.reason})" if self.reason else self.name.lower()

    def describe(self, job: Any) -> str:
        """`was cancelled`; or, where its program failed, with the last line of its log."""
        said = ENDED.get(self.name, self.name.lower())
        log = last_line_of_log(job.paths.stderr) if self.name == "FAILED" else ""
        return f"{said}: {log}" if log else said


class Queue(Protocol):
    """Where jobs are. They are those of submitit."""

    def states(self, jobs: Sequence[Any]) -> dict[str, State]:
        """Return the state of each job by its id; empty if there is no answer."""

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Cancel jobs, without waiting for them to end."""


class SlurmQueue:
    """A `Queue`: that of SLURM."""

    def states(self, jobs: Sequence[Any]) -> dict[str, State]:
        """As of `Queue`. A job that ended so long ago that SLURM does not know it is `COMPLETED`."""
        wanted = {job.job_id for job in jobs}
        arrays = sorted({job.partition("_")[0] for job in wanted}, key=int)
        words = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(arrays)}")
        try:
            text = ask("squeue", *words)
        except WorkerError as error:
            if "Invalid job id" not in str(error):  # which it says where all of them are unknown
                return {}
            text = ""
        return {job: State("COMPLETED") for job in wanted} | {
            job: state for job, state in parsed(text).items() if job in wanted
        }

    def cancel(self, jobs: Sequence[Any]) -> None:
        """As of `Queue`. A Ctrl-C that ends this process does not reach the command."""
        if jobs:
            null = subprocess.DEVNULL
            command = ["scancel", *(job.job_id for job in jobs)]
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                started = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
                started.wait(TOLD)


class LocalQueue:
    """A `Queue`: processes of this machine, started by submitit for a rehearsal."""

    def states(self, jobs: Sequence[Any]) -> dict[str, State]:
        names = {"RUNNING": "RUNNING", "INTERRUPTED": "CANCELLED"}
        return {job.job_id: State(names.get(job.state, "COMPLETED")) for job in jobs}

    def cancel(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            with contextlib.suppress(OSError):
                job.cancel(check=False)


def parsed(text: str) -> dict[str, State]:
    """Return the states in an answer of squeue: a line `ID|STATE|REASON` for each job."""
    rows = (line.strip().split("|", 2) for line in text.splitlines() if line.count("|") >= 2)
    return {job: State(name, "" if reason == "None" else reason) for job, name, reason in rows}


def partitions() -> list[str]:
    """Return the names of the partitions, hidden ones included. Raises WorkerError if SLURM does not answer."""
    return sorted({line.strip() for line in ask("sinfo", "--all", "--noheader", "--format=%R").splitlines()} - {""})


def ask(*command: str) -> str:
    """Return what a command of SLURM prints.

    Raises:
        WorkerError: it fails, or has no answer in time.
    """
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkerError(f"--on slurm: {command[0]} has no answer: {error}") from error
    if found.returncode:
        raise WorkerError(f"--on slurm: SLURM does not answer: {last_line(found.stderr) or command[0]}")
    return found.stdout


def missing() -> str | None:
    """Return the first command of SLURM that is not on PATH, or None."""
    return next((command for command in COMMANDS if shutil.which(command) is None), None)


def last_line(text: str) -> str:
    """Return the last line of what a command of SLURM wrote to standard error, without what such lines begin with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return BEGINNINGS.sub("", lines[-1]) if lines else ""


def last_line_of_log(path: Path) -> str:
    """Return the last line of a job's log that its program wrote, or else SLURM; empty if there is none."""
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    own = [line for line in lines if not line.startswith(OF_SLURM)]
    return (own or lines or [""])[-1]
