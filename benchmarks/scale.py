"""Measure what a trial costs the main process of a run, with workers that answer immediately without training.

    python benchmarks/scale.py [--trials 10000] [--jobs 16] [--out DIR]

The script prints processor and wall-clock milliseconds per trial for each thousand trials, from the first cohort that
is handed out until the last one is on the disk, and the peak memory. Cohorts, pool, session and store are those of any
run; preparing a worker's answer is part of the measured time.

On two busy cores, 10,000 trials in cohorts of eight: 2.8 ms of the processor per trial in the first thousand and 7.8 ms
in the ninth, since `RunWriter.add` looks at all trials for each cohort; 620 MiB.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from optbench.execution.backend import Message, Worker
from optbench.execution.messages import Finished, Job, Train, Unit
from optbench.execution.session import Options, Session
from optbench.execution.view import View
from optbench.plan import Trial
from optbench.store.tables import AccuracyRow, MetricRow, Row, TrialRow
from optbench.suite import Suite

TASKS = 2


def suite(trials: int) -> Suite:
    """Return a suite of at least this many trials: up to a hundred settings on as many seeds as needed."""
    settings = min(100, trials)
    experiment: dict[str, Any] = {
        "tasks": {"kind": "permuted", "count": TASKS},
        "models": {"net": {"kind": "mlp", "hidden": [4]}},
        "protocol": {
            "max_steps": 1,
            "batch_size": 32,
            "train_examples": 64,
            "validation_examples": 32,
            "test_examples": 32,
        },
    }
    rates = [0.1 * 0.99**i for i in range(settings)]
    return Suite.model_validate(
        {
            "name": "scale",
            "seeds": -(-trials // settings),
            "optimizers": {"sgd": {"target": "sgd", "lr": rates}},
            "experiments": {"one": experiment},
        }
    )


def rows(trial: Trial) -> list[Row]:
    """Return as many rows as a short trial has."""
    matrix = [(after, task) for after in range(TASKS + 1) for task in range(1, TASKS + 1)]
    return [
        TrialRow("ok", None, None, 1, 1, 100, "cpu", "{}", "0" * 16, 0.1, 0.1, 0, None, 0, None),
        *(AccuracyRow(after, task, 0.5, 1.0, 32, 0.5, 1.0) for after, task in matrix),
        *(MetricRow(TASKS, None, None, name, 0.5, None) for name in ("effective_rank", "hoyer")),
    ]


class Instant:
    """A worker that finishes a unit as soon as it receives it."""

    is_ready = True

    def __init__(self) -> None:
        self.unit: Unit | None = None

    def give(self, unit: Unit, job: Job) -> None:
        self.unit = unit

    def receive(self) -> Message:
        assert isinstance(self.unit, Train)
        cohort = self.unit.cohort
        return Finished(cohort, tuple((trial, row) for trial in cohort.trials for row in rows(trial)), ())

    def renew(self) -> None: ...


class InstantWorkers:
    """A `Backend` of such workers."""

    device = "cpu"

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def begin(self, job: Job, units: Sequence[Unit]) -> None: ...

    def start(self, place: int) -> Worker:
        return Instant()

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        return workers

    def discard(self, worker: Worker) -> None: ...

    def close(self) -> None: ...

    def kill(self) -> None: ...


class Clock(View):
    """Record the time when each thousand trials was on the disk."""

    def __init__(self) -> None:
        self.done = 0
        self.marks: list[tuple[int, float, float]] = []

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        self.done += len(rows)
        if not self.marks or self.done - self.marks[-1][0] >= 1000:
            self.marks.append((self.done, time.process_time(), time.perf_counter()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--out", type=Path, help="keep the run in this folder")
    given = parser.parse_args()
    folder = given.out or Path(tempfile.mkdtemp())
    clock = Clock()
    options = Options("cpu", folder, "scale", jobs=given.jobs)
    try:
        workers = InstantWorkers(given.jobs)
        with mock.patch("optbench.execution.session.open_backend", return_value=workers):
            started = time.perf_counter()
            with Session(options, clock) as session:
                plan = session.begin(suite(given.trials))
                begun = (0, time.process_time(), time.perf_counter())
                session.train(plan)
            trained = clock.marks[-1][2]
            ended = time.perf_counter()
    finally:
        if given.out is None:
            shutil.rmtree(folder, ignore_errors=True)
    marks = [begun, *clock.marks[1:]]
    costs = []
    print("trials  processor ms/trial  clock ms/trial")
    for (a, cpu_a, at_a), (b, cpu_b, at_b) in itertools.pairwise(marks):
        costs.append((cpu_b - cpu_a) / (b - a))
        print(f"{b:6}  {1000 * costs[-1]:18.2f}  {1000 * (at_b - at_a) / (b - a):14.2f}")
    if len(costs) > 1:
        print(f"last / first thousand: {costs[-1] / costs[0]:.2f}")
    print(f"plan and checks: {begun[2] - started:.1f} s; last tables: {ended - trained:.1f} s")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
