"""Execution of a cost plan, with a separate process for each optimizer and size in turn. Does not import torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optbench.costing import memory
from optbench.costing.contenders import Contender
from optbench.costing.job import CostJob
from optbench.costing.result import FORMAT, VERSION, CostResult, Row, save
from optbench.costing.sizes import SIZES
from optbench.errors import escaped

WORKER = (sys.executable, "-P", "-m", "optbench.costing.worker")
LEFT = 512 << 20
"""Bytes of free memory that are left for the rest of the system."""


@dataclass(frozen=True)
class CostPlan:
    """The measurements to make, with the settings of their jobs (see `CostJob`).

    timeout: time limit of each process, in seconds.
    limit: memory limit of each process, in bytes.
    batch: number of sequences per step; None for the default of each size.
    """

    contenders: tuple[Contender, ...]
    sizes: tuple[str, ...]
    threads: tuple[int, ...]
    device: str
    steps: int
    seconds: float
    timeout: float
    limit: int
    warm_up: int = 0
    batch: int | None = None

    def jobs(self) -> Iterator[CostJob]:
        """Yield one job for each size and optimizer, in the order of execution."""
        for size in self.sizes:
            for one in self.contenders:
                yield CostJob(
                    name=one.name,
                    target=one.target,
                    settings=dict(one.settings),
                    size=size,
                    batch=self.batch or SIZES[size].batch,
                    threads=self.threads,
                    device=self.device,
                    steps=self.steps,
                    seconds=self.seconds,
                    limit=self.limit,
                    warm_up=self.warm_up,
                    twin=one.twin,
                )


def measure(
    plan: CostPlan,
    file: Path,
    provenance: dict[str, Any],
    command: Sequence[str],
    told: Callable[[str, int, int], None],
) -> CostResult:
    """Execute the plan, saving the result to `file` after every row, and return the complete result.

    told: function called before each job with the job's description, its number (from 1) and the number of jobs.

    Raises:
        StoreError: the file cannot be written.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    load: float | None = None
    with contextlib.suppress(OSError):
        load = os.getloadavg()[0]
    result = CostResult(
        format=FORMAT,
        version=VERSION,
        created=created,
        command=tuple(command),
        limit=plan.limit,
        load=load,
        provenance=provenance,
    )
    jobs = list(plan.jobs())
    for i, job in enumerate(jobs):
        told(f"{job.name}, {job.size}", i + 1, len(jobs))
        # other processes may have allocated memory meanwhile
        limit = min(plan.limit, max(memory.available() - LEFT, 0)) if plan.device == "cpu" else plan.limit
        row = ask(dataclasses.replace(job, limit=limit), plan.timeout)
        result = result.model_copy(update={"rows": (*result.rows, row)})
        save(result, file)
    return result


def ask(job: CostJob, timeout: float) -> Row:
    """Run one job in a separate process, and return the job's row; kill the process after `timeout` seconds."""
    told = dataclasses.asdict(job)
    lost = {name: told[name] for name in ("target", "settings", "size", "twin")}
    lost |= {"optimizer": job.name, "tokens": job.batch * SIZES[job.size].context, "parameters": 0}
    process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        try:
            out, err = process.communicate(json.dumps(told), timeout=timeout)
            code, note = process.returncode, ""
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            code, note = 0, f"stopped after {timeout:g} s"
        lines = out.splitlines()
        row = Row.model_validate_json(lines[-1] if lines else "")
        if row.status != "started":
            return row
        if not note:
            return row.model_copy(update={"status": "failed", "note": ended(code, err)})
        return row.model_copy(update={"status": "too slow", "note": f"{note}, after its first step"})
    except ValidationError:
        if note:
            return Row(**lost, status="too slow", note=f"{note}, before the end of its first step")
        return Row(**lost, status="failed", note=ended(code, err))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def ended(code: int, err: str) -> str:
    """Describe how a process that returned no result ended."""
    said = escaped(err.strip().splitlines()[-1]) if err.strip() else "it printed nothing"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}: {said}"
    return f"ended with exit code {code}: {said}"
