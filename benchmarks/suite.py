"""Time and peak memory of a whole suite, as a user runs it.

    python benchmarks/suite.py [SUITE] [--device cpu] [--seeds 10] [--rounds 1] [-- --set KEY=VALUE ...]
    python benchmarks/suite.py continual --device cuda --seeds 10 --rounds 3

Runs `optbench run SUITE` in a process of its own, from its start to its exit: imports, data, training, measuring and
writing. Everything after `--` is passed on to it. What is printed: seconds on the clock and of processor time, the
largest memory of all its processes together (proportional set size where the system tells it, sampled ten times a
second), the largest memory in use on the CUDA device, whoever uses it, and how the trials ended. Then where the time of
the trials went: seconds of training, and of them in the optimizer, by experiment, model and optimizer; the rest is
start, evaluation, metrics and writing.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch

EVERY = 0.1
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Round:
    """One run of the suite."""

    seconds: float
    processor_seconds: float
    host_bytes: int
    device_bytes: int
    trials: pd.DataFrame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="continual")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seeds", default="10", help="as for `optbench run`")
    parser.add_argument("--rounds", type=int, default=1)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, more = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    where = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"
    if arguments.device != "cpu":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {where}"
    print(f"{where}, torch {torch.__version__}")
    words = [arguments.suite, "--device", arguments.device, "--seeds", arguments.seeds, *more]
    print(f"optbench run {' '.join(words)}")
    for _ in range(arguments.rounds):
        found = measured(words, on_device=arguments.device != "cpu")
        ended = ", ".join(f"{count} {status}" for status, count in found.trials["status"].value_counts().items())
        memory = f"{found.host_bytes / 2**20:,.0f} MiB"
        if found.device_bytes:
            memory += f", on the device {found.device_bytes / 2**20:,.0f} MiB"
        print(f"\n{found.seconds:.1f} s, {found.processor_seconds:.1f} s of processors; peak {memory}; {ended}")
        print(by_optimizer(found.trials).to_string(float_format=lambda value: f"{value:.1f}"), flush=True)


def measured(words: list[str], *, on_device: bool) -> Round:
    """Run it once."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "optbench.cli", "run", *words, "--quiet"]
        command += ["--runs-dir", folder, "--name", "measured"]
        free_before = torch.cuda.mem_get_info()[0] if on_device else 0
        host = device = 0
        processors: dict[int, float] = {}
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                host = max(host, memory_of(process.pid, processors))
                if on_device:
                    device = max(device, free_before - torch.cuda.mem_get_info()[0])
                time.sleep(EVERY)
        seconds = time.perf_counter() - started
        if process.returncode not in (0, 3):
            sys.exit(process.returncode)
        trials = pd.read_parquet(Path(folder) / "measured" / "trials.parquet")
    return Round(seconds, sum(processors.values()), host, device, trials)


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


def by_optimizer(trials: pd.DataFrame) -> pd.DataFrame:
    """Sums over the trials of each experiment, model and optimizer."""
    keys = ["experiment", "model", "optimizer"]
    sums = trials.groupby(keys)[["train_seconds", "optimizer_seconds"]].sum()
    return sums.assign(trials=trials.groupby(keys).size()).rename(columns=lambda name: name.replace("_", " "))


if __name__ == "__main__":
    main()
