"""Measure the cost of a run in its main process, and how busy it keeps many workers. Nothing is trained.

    python benchmarks/scale.py [--trials 10000] [--jobs 16] [--out DIR]    # workers answer immediately
    python benchmarks/scale.py --trials 10000 --jobs 500 --seconds 360     # simulated workers
    python benchmarks/scale.py --trials 240 --jobs 4 --seconds 3 --asleep  # processes that sleep

Without `--seconds`, workers answer immediately. The script prints processor and wall-clock milliseconds per trial for
each thousand trials, from when the first cohort is handed out until the last one is on disk, and the peak memory.
Preparing a worker's answer is part of the measured time.

With `--seconds`, a trial takes this long on average. One of the three optimizers is four times as slow as the others,
and one of the two models twice as slow as the other. Durations vary by a third (log-normal), as they do with early
stopping, and a trial trained alone takes a fifth longer than its share of a large cohort. The scheduler does not have
this information in advance, only its own estimate of an optimizer's cost. Efficiency is the time that all trials would
take in large cohorts, divided by workers × elapsed time.

With simulated workers, time in which all workers are busy is skipped. Their clock is the processor time of the main
process, which counts in full, plus the skipped time; time spent waiting for the disk is not counted. With `--asleep`,
each worker is a process that sleeps instead of computing, so that it does not need a core, and the clock is the wall
clock.

Cohorts, pool, session and store are the same as in any run. Results: benchmarks/RESULTS.md, "Scale".
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import multiprocessing
import multiprocessing.connection
import pickle
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from optbench.execution.backend import Backend, Message, Worker
from optbench.execution.messages import Finished, Job, Train, Unit
from optbench.execution.session import Options, Session
from optbench.execution.view import View
from optbench.plan import Cohort, Trial
from optbench.store.tables import AccuracyRow, MetricRow, Row, TrialRow
from optbench.suite import Suite

TASKS = 2
ALONE = 0.2
"""Relative extra time of a trial trained alone, compared with its share of a large cohort; 0.17 to 0.55 measured."""
VARIATION = 0.33
"""Standard deviation of the logarithm of a trial's training time."""
LENGTHS = {"sgd": 1.0, "adam": 1.0, "shampoo": 4.0, "small": 1.0, "large": 2.0}
"""Relative training time by optimizer and by model."""


def suite(trials: int, *, varied: bool) -> Suite:
    """Return a suite of at least this many trials, on as many seeds as needed.

    varied: whether to use several optimizers and models.
    """
    optimizers = ("sgd", "adam", "shampoo") if varied else ("sgd",)
    models = ("small", "large") if varied else ("net",)
    settings = min(10 if varied else 100, trials)
    rates = [0.1 * 0.99**i for i in range(settings)]
    experiment: dict[str, Any] = {
        "tasks": {"kind": "permuted", "count": TASKS},
        "models": {name: {"kind": "mlp", "hidden": [4]} for name in models},
        "protocol": {
            "max_steps": 1,
            "batch_size": 32,
            "train_examples": 64,
            "validation_examples": 32,
            "test_examples": 32,
        },
    }
    return Suite.model_validate(
        {
            "name": "scale",
            "seeds": math.ceil(trials / (settings * len(optimizers) * len(models))),
            "optimizers": {name: {"target": name, "lr": rates} for name in optimizers},
            "experiments": {"one": experiment},
        }
    )


def rows(trial: Trial, seconds: float) -> list[Row]:
    """Return the rows of a short trial."""
    matrix = [(after, task) for after in range(TASKS + 1) for task in range(1, TASKS + 1)]
    return [
        TrialRow("ok", None, None, 1, 1, 100, "cpu", "{}", "0" * 16, seconds, 0.1, 0, None, 0, None),
        *(AccuracyRow(after, task, 0.5, 1.0, 32, 0.5, 1.0) for after, task in matrix),
        *(MetricRow(TASKS, None, None, name, 0.5, None) for name in ("effective_rank", "hoyer")),
    ]


class Lengths:
    """Training times. mean: their mean in seconds over a suite with equal numbers of trials of each kind."""

    def __init__(self, mean: float) -> None:
        kinds = [LENGTHS[a] * LENGTHS[b] for a in ("sgd", "adam", "shampoo") for b in ("small", "large")]
        self._unit = mean / statistics.fmean(kinds)

    def of_trial(self, trial: Trial) -> float:
        """Return the training time of a trial in a large cohort, in seconds; it depends only on the trial."""
        if not self._unit:
            return 0.0
        draw = int.from_bytes(hashlib.sha256(trial.id.encode()).digest()[:6], "big") / 2**48
        variation = math.exp(VARIATION * statistics.NormalDist(-VARIATION / 2).inv_cdf(min(max(draw, 1e-9), 1 - 1e-9)))
        return self._unit * LENGTHS[trial.optimizer] * LENGTHS[trial.model] * variation

    def of_cohort(self, cohort: Cohort) -> float:
        """Return the training time of a cohort in lock-step, in seconds."""
        return sum(map(self.of_trial, cohort.trials)) * (1 + ALONE / len(cohort.trainings))

    def answer(self, cohort: Cohort) -> Finished:
        """Return the message that a worker sends after training a cohort."""
        share = self.of_cohort(cohort) / len(cohort.trials)
        return Finished(cohort, tuple((trial, row) for trial in cohort.trials for row in rows(trial, share)), ())


class SimulatedWorker:
    """A worker of `SimulatedWorkers`. until: the time at which it finishes its unit."""

    is_ready = True

    def __init__(self, workers: SimulatedWorkers) -> None:
        self._workers = workers
        self.unit: Unit | None = None
        self.until = 0.0

    def give(self, unit: Unit, job: Job) -> None:
        assert isinstance(unit, Train)
        self.unit = unit
        seconds = self._workers.lengths.of_cohort(unit.cohort)
        self._workers.lengths_given.append(seconds)
        self.until = self._workers.now() + seconds

    def receive(self) -> Message:
        assert isinstance(self.unit, Train)
        return self._workers.lengths.answer(self.unit.cohort)

    def renew(self) -> None: ...


class SimulatedWorkers:
    """A `Backend` whose workers do nothing; the time in which all of them are busy is skipped."""

    device = "cpu"

    def __init__(self, jobs: int, lengths: Lengths) -> None:
        self.jobs, self.lengths = jobs, lengths
        self.lengths_given: list[float] = []
        self._skipped = 0.0

    def now(self) -> float:
        """Return the processor time of this process plus the skipped time, in seconds."""
        return time.process_time() + self._skipped

    def begin(self, job: Job, units: Sequence[Unit]) -> None: ...

    def start(self, place: int) -> Worker:
        return SimulatedWorker(self)

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        ours = [worker for worker in workers if isinstance(worker, SimulatedWorker)]
        self._skipped += max(0.0, min(worker.until for worker in ours) - self.now())
        now = self.now()
        return sorted((worker for worker in ours if worker.until <= now), key=lambda worker: worker.until)

    def discard(self, worker: Worker) -> None: ...

    def close(self) -> None: ...

    def kill(self) -> None: ...


class SleepingWorker:
    """A worker of `SleepingWorkers`: a process that sleeps, and this end of its connection."""

    is_ready = True

    def __init__(self, workers: SleepingWorkers) -> None:
        self._workers = workers
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=sleep, args=(theirs, workers.mean), daemon=True)
        self.process.start()
        self.connection.recv()  # the start of processes is not measured

    def give(self, unit: Unit, job: Job) -> None:
        assert isinstance(unit, Train)
        self._workers.lengths_given.append(self._workers.lengths.of_cohort(unit.cohort))
        self.connection.send(unit)

    def receive(self) -> Message:
        answer: Message = self.connection.recv()
        return answer

    def renew(self) -> None: ...


class SleepingWorkers:
    """A `Backend` of processes that sleep for as long as training would take."""

    device = "cpu"

    def __init__(self, jobs: int, lengths: Lengths, mean: float) -> None:
        self.jobs, self.lengths, self.mean = jobs, lengths, mean
        self.lengths_given: list[float] = []
        self._workers = [SleepingWorker(self) for _ in range(jobs)]

    def now(self) -> float:
        """Return the wall-clock time in seconds."""
        return time.perf_counter()

    def begin(self, job: Job, units: Sequence[Unit]) -> None: ...

    def start(self, place: int) -> Worker:
        return self._workers[place]

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        by_connection = {worker.connection: worker for worker in workers if isinstance(worker, SleepingWorker)}
        ready = multiprocessing.connection.wait(list(by_connection))
        return [worker for connection, worker in by_connection.items() if connection in ready]

    def discard(self, worker: Worker) -> None: ...

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()


def sleep(connection: Connection, mean: float) -> None:
    """Main function of a sleeping worker."""
    lengths = Lengths(mean)
    connection.send("ready")
    while True:
        unit: Train = connection.recv()
        began = time.perf_counter()
        answer = pickle.dumps(lengths.answer(unit.cohort))
        time.sleep(max(0.0, lengths.of_cohort(unit.cohort) - (time.perf_counter() - began)))
        connection.send_bytes(answer)


class Clock(View):
    """A view that records when each further thousand trials is on disk."""

    def __init__(self) -> None:
        self.done = 0
        self.marks: list[tuple[int, float, float]] = []

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        self.done += len(rows)
        if not self.marks or self.done - self.marks[-1][0] >= 1000:
            self.marks.append((self.done, time.process_time(), time.perf_counter()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=16, help="number of workers")
    parser.add_argument("--seconds", type=float, default=0.0, help="mean time of a trial on a worker")
    parser.add_argument("--asleep", action="store_true", help="workers are processes that sleep")
    parser.add_argument("--out", type=Path, help="keep the run in this folder")
    given = parser.parse_args(arguments)
    folder = given.out or Path(tempfile.mkdtemp())
    clock, lengths = Clock(), Lengths(given.seconds)
    workers: SimulatedWorkers | SleepingWorkers = (
        SleepingWorkers(given.jobs, lengths, given.seconds) if given.asleep else SimulatedWorkers(given.jobs, lengths)
    )
    options = Options("cpu", folder, "scale", jobs=given.jobs)

    def opened(*arguments: object, **more: object) -> Backend:
        return workers

    try:
        with mock.patch("optbench.execution.session.open_backend", opened):
            started = time.perf_counter()
            with Session(options, clock) as session:
                plan = session.begin(suite(given.trials, varied=given.seconds > 0))
                begun = (0, time.process_time(), time.perf_counter())
                began = workers.now()
                session.train(plan)
                taken = workers.now() - began
                trained, processor = time.perf_counter(), time.process_time() - begun[1]
            ended = time.perf_counter()
    finally:
        if given.out is None:
            shutil.rmtree(folder, ignore_errors=True)
    trials = len(plan.trials)
    if given.seconds:
        useful = sum(map(lengths.of_trial, plan.trials))
        how = "that sleep" if given.asleep else "simulated, without waiting for the disk"
        pieces = sorted(workers.lengths_given)
        print(f"{trials} trials of {useful / trials:.1f} s on {given.jobs} workers ({how}): {taken:.1f} s")
        print(f"efficiency: {useful / (given.jobs * taken):.1%}; busy: {sum(pieces) / (given.jobs * taken):.1%}")
        print(f"{len(pieces)} cohorts; seconds: median {statistics.median(pieces):.1f}, longest {pieces[-1]:.1f}")
    else:
        _print_costs([begun, *clock.marks[1:]])
    print(f"processor time of the main process: {processor:.1f} s, {1000 * processor / trials:.2f} ms/trial")
    print(f"plan and checks: {begun[2] - started:.1f} s; last tables: {ended - trained:.1f} s")
    # Bytes on macOS, KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(f"peak memory: {peak:.0f} MiB")


def _print_costs(marks: Sequence[tuple[int, float, float]]) -> None:
    costs = []
    print("trials  processor ms/trial  clock ms/trial")
    for (a, cpu_a, at_a), (b, cpu_b, at_b) in itertools.pairwise(marks):
        costs.append((cpu_b - cpu_a) / (b - a))
        print(f"{b:6}  {1000 * costs[-1]:18.2f}  {1000 * (at_b - at_a) / (b - a):14.2f}")
    if len(costs) > 1:
        print(f"last / first thousand: {costs[-1] / costs[0]:.2f}")


if __name__ == "__main__":
    main()
