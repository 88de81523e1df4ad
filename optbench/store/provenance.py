"""Provenance of results: versions, machine, and the state of the git repository."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def provenance(device: str, accelerators: list[str], cpu_capability: str, jobs: int) -> dict[str, Any]:
    """Return a record of the installed packages, the machine and, if any, the git commit of the working directory.

    Args:
        device: the device on which the run trains.
        accelerators: names of the GPUs that the run can use.
        cpu_capability: the instruction set that PyTorch uses, which affects the bits of initial weights.
        jobs: the number of worker processes, each with one thread.
    """
    packages = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return {
        "optbench": packages.get("optbench"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": packages.get("torch"),
        "cpu": _cpu_name(),
        "cpu_capability": cpu_capability,
        "cores": os.cpu_count(),
        "device": device,
        "accelerators": accelerators,
        "jobs": jobs,
        "threads_per_job": 1,
        "git": _git(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
