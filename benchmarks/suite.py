"""Measure the time and peak memory of a complete suite, as a user runs it.

    python benchmarks/suite.py [SUITE] [--device cpu] [--seeds 10] [--rounds 1] [-- --set KEY=VALUE ...]
    python benchmarks/suite.py continual --device cuda --seeds 10 --rounds 3

The script runs `optbench run SUITE` in a separate process, and measures it from start to exit, including imports, data,
training, measuring and writing. Everything after `--` is passed on to the command. The script prints wall-clock and
processor seconds, the peak memory of all its processes together (proportional set size if the system provides it,
sampled ten times per second), the peak memory in use on the CUDA device, including that of other programs, and how the
trials ended. It then prints how the time of the command is divided, and the seconds of training and of optimizer steps
by experiment, model and optimizer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

try:
    import psutil
except ModuleNotFoundError:  # psutil is in the extra `dev`; memory and processor time are not measured without it
    psutil = None

EVERY = 0.1
"""Seconds between two samples of the memory."""
GRACE = 6.0
"""Seconds allowed for an interrupted run to write its finished trials."""


@dataclass(frozen=True)
class Round:
    """One run of the suite."""

    code: int
    """Exit code; 130 if the run was interrupted at its limit."""
    seconds: float
    processor_seconds: float
    host_bytes: int
    device_bytes: int
    trials: pd.DataFrame
    """The trials that were written."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="continual")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seeds", default="10", help="as for `optbench run`")
    parser.add_argument("--rounds", type=int, default=1)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, more = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    where = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if arguments.device != "cpu":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {where}"
    print(f"{where}, torch {torch.__version__}")
    words = [arguments.suite, "--device", arguments.device, "--seeds", arguments.seeds, *more]
    print(f"optbench run {' '.join(words)}")
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            launched = time.time()
            found = measured(words, Path(folder), on_device=arguments.device != "cpu")
            if found.code not in FINISHED:
                sys.exit(found.code)
            parts = breakdown(Path(folder) / "measured", launched, found)
        print(f"\n{headline(found)}")
        print(parts.to_string(float_format=lambda value: f"{value:.1f}"))
        print(by_optimizer(found.trials).to_string(float_format=lambda value: f"{value:.1f}"), flush=True)


FINISHED = (0, 3)
"""Exit codes of a run that reached its end, without and with failed trials."""


def headline(found: Round) -> str:
    """Return one line with the time, the memory and how the trials ended."""
    ended = ", ".join(f"{count} {status}" for status, count in found.trials["status"].value_counts().items())
    if psutil is None:
        spent, memory = "", "host memory not measured: psutil is missing"
    else:
        spent = f", {found.processor_seconds:.1f} s of processor time"
        memory = f"peak {found.host_bytes / 2**20:,.0f} MiB"
    if found.device_bytes:
        memory += f", on the device {found.device_bytes / 2**20:,.0f} MiB"
    return f"{found.seconds:.1f} s{spent}; {memory}; {ended or 'no trial written'}"


def measured(
    words: list[str],
    folder: Path,
    *,
    on_device: bool,
    limit: float = float("inf"),
    look: Callable[[float], None] = lambda seconds: None,
) -> Round:
    """Run the suite once, into `folder / "measured"`; interrupt it after `limit` seconds.

    look: called about ten times per second with the elapsed seconds.
    """
    command = [sys.executable, "-m", "optbench", "run", *words, "--quiet"]
    command += ["--runs-dir", str(folder), "--name", "measured"]
    free_before = torch.cuda.mem_get_info()[0] if on_device else 0
    host = device = 0
    processors: dict[int, float] = {}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        asked = False
        while process.poll() is None:
            if psutil is not None:
                host = max(host, memory_of(process.pid, processors))
            if on_device:
                device = max(device, free_before - torch.cuda.mem_get_info()[0])
            seconds = time.perf_counter() - started
            look(seconds)
            if not asked and seconds > limit:
                process.send_signal(signal.SIGINT)
                asked = True
            elif seconds > limit + GRACE:
                process.kill()
            time.sleep(EVERY)
    seconds = time.perf_counter() - started
    return Round(process.returncode, seconds, sum(processors.values()), host, device, trials_in(folder / "measured"))


def trials_in(run: Path) -> pd.DataFrame:
    """Return the trials that a run has written so far; none if there is no run yet."""
    import optbench
    from optbench.errors import OptbenchError

    columns = ["experiment", "model", "optimizer", "status", "train_seconds", "optimizer_seconds"]
    # A run replaces its files, so a file that is missing now will be found the next time.
    with contextlib.suppress(OptbenchError, OSError):
        return optbench.read_run(run).table("trials", controls=True)
    return pd.DataFrame(columns=columns)


def memory_of(pid: int, processors: dict[int, float]) -> int:
    """Return the bytes in use by a process and its descendants; store each one's processor time in `processors`."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in family:
        try:
            memory = one.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
            times = one.cpu_times()
            processors[one.pid] = times.user + times.system
        except psutil.Error:  # the process has ended
            continue
    return total


def breakdown(run: Path, launched: float, found: Round) -> pd.DataFrame:
    """Return the wall-clock seconds of a run by activity, and their percentage.

    `start` lasts until the run directory is created, after imports and checks. The times that trials record are divided
    by the number of processes. The rest is the start of the workers, data, writing, and waiting for the last process.

    launched: the time at which the command was started, as returned by `time.time`.
    """
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    jobs = record["provenance"]["jobs"]
    began, ended = ((run / name).stat().st_mtime - launched for name in ("suite.yaml", "run.json"))
    training = found.trials["train_seconds"].sum() / jobs
    scores = found.trials["evaluation_seconds"].sum() / jobs if "evaluation_seconds" in found.trials else 0.0
    rest = "data, writing, waiting" if scores else "scores, measures, data, writing, waiting"
    seconds = {
        "start": began,
        "training": training,
        **({"scores and measures": scores} if scores else {}),
        rest: ended - began - training - scores,
        "closing report": found.seconds - ended,
    }
    table = pd.DataFrame({"seconds": seconds})
    return table.assign(percent=100 * table["seconds"] / found.seconds)


def by_optimizer(trials: pd.DataFrame) -> pd.DataFrame:
    """Return sums over the trials of each experiment, model and optimizer."""
    keys = ["experiment", "model", "optimizer"]
    sums = trials.groupby(keys)[["train_seconds", "optimizer_seconds"]].sum()
    return sums.assign(trials=trials.groupby(keys).size()).rename(columns=lambda name: name.replace("_", " "))


if __name__ == "__main__":
    main()
