"""Time and peak memory of a whole suite, as a user runs it.

    python benchmarks/suite.py [SUITE] [--device cpu] [--seeds 10] [--rounds 1] [-- --set KEY=VALUE ...]
    python benchmarks/suite.py continual --device cuda --seeds 10 --rounds 3

Runs `optbench run SUITE` in a process of its own, from its start to its exit: imports, data, training, measuring and
writing. Everything after `--` is passed on to it. What is printed: seconds on the clock and of processor time, the
largest memory of all its processes together (proportional set size where the system tells it, sampled ten times a
second), the largest memory in use on the CUDA device, whoever uses it, and how the trials ended. Then where the time of
the whole command went, and where that of the trials: seconds of training, and of them in the optimizer, by experiment,
model and optimizer.
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
except ModuleNotFoundError:  # of the extra `dev`: without it, memory and processor time are not measured
    psutil = None

EVERY = 0.1
"""Seconds between two looks at the memory."""
GRACE = 6.0
"""Seconds that an interrupted run has to write what it finished."""


@dataclass(frozen=True)
class Round:
    """One run of the suite."""

    code: int
    """Exit code; 130 if it was interrupted at its limit."""
    seconds: float
    processor_seconds: float
    host_bytes: int
    device_bytes: int
    trials: pd.DataFrame
    """Those that were written."""


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
"""Exit codes of a run that reached its end: with and without trials that raised."""


def headline(found: Round) -> str:
    """Time, memory and how the trials ended, in a line."""
    ended = ", ".join(f"{count} {status}" for status, count in found.trials["status"].value_counts().items())
    if psutil is None:
        spent, memory = "", "host memory not measured: psutil is missing"
    else:
        spent = f", {found.processor_seconds:.1f} s of processors"
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
    """Run it once, into `folder / "measured"`; interrupt it after `limit` seconds.

    look: called about ten times a second with the seconds so far.
    """
    command = [sys.executable, "-m", "optbench.cli", "run", *words, "--quiet"]
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
    """The trials that a run has written so far; none if there is no run yet."""
    import optbench
    from optbench.errors import OptbenchError

    columns = ["experiment", "model", "optimizer", "status", "train_seconds", "optimizer_seconds"]
    # A run replaces its files: one that is missing now is there at the next look.
    with contextlib.suppress(OptbenchError, OSError):
        return optbench.read_run(run).table("trials", controls=True)
    return pd.DataFrame(columns=columns)


def memory_of(pid: int, processors: dict[int, float]) -> int:
    """Bytes of a process and all below it now; what of processor time each has used is noted in `processors`."""
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
        except psutil.Error:  # it has ended
            continue
    return total


def breakdown(run: Path, launched: float, found: Round) -> pd.DataFrame:
    """Seconds of a run on the clock by what its processes did, and their share of it.

    Start: until the run directory is made, when all has been imported and checked. What trials say of themselves is
    divided by the number of processes. The rest: workers' own start, data, writing, and waiting for the last process.

    launched: the time at which the command was started, as of `time.time`.
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
    """Sums over the trials of each experiment, model and optimizer."""
    keys = ["experiment", "model", "optimizer"]
    sums = trials.groupby(keys)[["train_seconds", "optimizer_seconds"]].sum()
    return sums.assign(trials=trials.groupby(keys).size()).rename(columns=lambda name: name.replace("_", " "))


if __name__ == "__main__":
    main()
