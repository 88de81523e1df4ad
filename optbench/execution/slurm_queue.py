"""Access to SLURM's queue: querying the states of a run's jobs, and cancelling jobs.

States are read with `squeue`, because `sacct`, which submitit uses, fails on clusters without an accounting database.
"""

from __future__ import annotations

import contextlib
import os
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
"""Final states of jobs, and their wording in messages. Jobs in other states are waiting, running or about to end."""
HELD = ("REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
"""States of jobs that were put back into the queue despite `--no-requeue`."""
SUSPENDED = ("SUSPENDED", "STOPPED")
"""States of jobs that SLURM has stopped and can continue."""
WAITING = ("PENDING", "CONFIGURING", *SUSPENDED, *HELD)
"""States of jobs that are not running yet, or are suspended."""
ANSWER = 60.0
"""Timeout of queries, in seconds."""
TOLD = 3.0
"""Seconds to wait for `scancel`, which continues in the background if it takes longer."""
BEGINNINGS = re.compile(r"^(s\w+: )?((error|fatal): )?(Batch job submission failed: )?")
"""Pattern of the text that precedes the reason in an error message: the command's name and the kind of error."""
OF_SLURM = ("srun:", "slurmstepd:")
"""Beginnings of the lines that SLURM adds to a job's log after the output of the program."""


@dataclass(frozen=True)
class State:
    """The state of a job, as reported by squeue. name: e.g. `PENDING`. reason: why it is in this state, if known."""

    name: str
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        return self.name in ENDED

    @property
    def waits(self) -> bool:
        """True if the job is not running yet, or is suspended."""
        return self.name in WAITING

    @property
    def is_suspended(self) -> bool:
        return self.name in SUSPENDED

    def describe_wait(self) -> str:
        """Return text such as `pending (Resources)`."""
        return f"{self.name.lower()} ({self.reason})" if self.reason else self.name.lower()

    def describe(self, job: Any) -> str:
        """Return text such as `was cancelled`. If the job's program failed, include the last line of its log."""
        said = ENDED.get(self.name, self.name.lower())
        log = last_line_of_log(job.paths.stderr) if self.name == "FAILED" else ""
        return f"{said}: {log}" if log else said


class Queue(Protocol):
    """The interface of a queue of jobs submitted with submitit."""

    def states(self, jobs: Sequence[Any]) -> dict[str, State]:
        """Return the states of jobs, by job id; an empty mapping if the queue does not answer."""

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Cancel jobs, without waiting for them to end."""


class SlurmQueue:
    """SLURM's queue, accessed with `squeue` and `scancel`."""

    def states(self, jobs: Sequence[Any]) -> dict[str, State]:
        """See `Queue`. SLURM forgets jobs some minutes after they end; these are reported as `COMPLETED`."""
        wanted = {job.job_id for job in jobs}
        arrays = sorted({job.partition("_")[0] for job in wanted}, key=int)
        words = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(arrays)}")
        try:
            text = ask("squeue", *words)
        except WorkerError as error:
            if "Invalid job id" not in str(error):  # the error if SLURM has forgotten all of them
                return {}
            text = ""
        return {job: State("COMPLETED") for job in wanted} | {
            job: state for job, state in parsed(text).items() if job in wanted
        }

    def cancel(self, jobs: Sequence[Any]) -> None:
        """See `Queue`. The command runs in its own session, so Ctrl-C does not interrupt it."""
        if jobs:
            null = subprocess.DEVNULL
            command = ["scancel", *(job.job_id for job in jobs)]
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                started = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
                started.wait(TOLD)


class LocalQueue:
    """A `Queue` of processes that submitit starts on this machine, for trying a run without SLURM."""

    def states(self, jobs: Sequence[Any]) -> dict[str, State]:
        names = {"RUNNING": "RUNNING", "INTERRUPTED": "CANCELLED"}
        return {job.job_id: State(names.get(job.state, "COMPLETED")) for job in jobs}

    def cancel(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            with contextlib.suppress(OSError):
                job.cancel(check=False)


def parsed(text: str) -> dict[str, State]:
    """Parse the output of squeue, which has a line `ID|STATE|REASON` for each job; return the states by job id."""
    rows = (line.strip().split("|", 2) for line in text.splitlines() if line.count("|") >= 2)
    return {job: State(name, "" if reason == "None" else reason) for job, name, reason in rows}


def partitions() -> list[str]:
    """Return the names of all partitions, including hidden ones. Raises WorkerError if SLURM does not answer."""
    return sorted({line.strip() for line in ask("sinfo", "--all", "--noheader", "--format=%R").splitlines()} - {""})


def ask(*command: str) -> str:
    """Run a SLURM command without the variables `SQUEUE_*` and `SINFO_*`, and return its standard output.

    Raises:
        WorkerError: the command fails or times out.
    """
    # `SQUEUE_PARTITION`, for example, hides jobs in other partitions, which would be considered ended.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SINFO_"))}
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER, check=False, env=own
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkerError(f"--on slurm: {command[0]} does not answer: {error}") from error
    if found.returncode:
        reason = last_line(found.stderr) or f"exit code {found.returncode}"
        raise WorkerError(f"--on slurm: {command[0]} failed: {reason}")
    return found.stdout


def missing() -> str | None:
    """Return the first SLURM command that is not on PATH, or None."""
    return next((command for command in COMMANDS if shutil.which(command) is None), None)


def last_line(text: str) -> str:
    """Return the last line of a SLURM command's standard error, without the prefix that `BEGINNINGS` matches."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return BEGINNINGS.sub("", lines[-1]) if lines else ""


def last_line_of_log(path: Path) -> str:
    """Return the last line of a job's log, ignoring lines that SLURM added.

    If SLURM added all lines, return the last of them; without a log, return an empty string.
    """
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    own = [line for line in lines if not line.startswith(OF_SLURM)]
    return (own or lines or [""])[-1]
