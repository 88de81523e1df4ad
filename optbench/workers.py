"""Worker processes: each trains cohorts with one thread, and only sends what it found; the parent writes.

One thread each, because a product split over threads sums in another order than the same product alone: with one
thread a trial's bits do not depend on its cohort, and the cores are kept busy by processes instead.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optbench.errors import OptbenchError
from optbench.plan import Cohort, Trial
from optbench.store.tables import Row
from optbench.suite import Suite

if TYPE_CHECKING:
    from optbench.engine import Progress

Weights = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know before its first cohort."""

    suite: Suite
    device: str
    data_dir: Path | None


@dataclass(frozen=True)
class Finished:
    """A cohort was trained: rows of every trial, and final weights of those that have any."""

    cohort: Cohort
    rows: tuple[tuple[Trial, Row], ...]
    weights: tuple[tuple[Trial, Weights], ...]


@dataclass(frozen=True)
class Failed:
    """A cohort could not be trained, for a reason that is not the user's settings."""

    cohort: Cohort
    error_type: str
    message: str
    details: str


Event = "Progress | Finished | Failed"


def train_all(cohorts: Sequence[Cohort], job: Job, jobs: int) -> Iterator[Progress | Finished | Failed]:
    """Train the cohorts, in order of starting, on `jobs` processes; events as they come.

    A worker that dies (killed, out of memory) costs only the cohort it was training, which is tried once more.

    Raises:
        OptbenchError: what a worker raised because of the user's settings.
    """
    waiting = list(reversed(cohorts))
    died_before: set[str] = set()
    workers = [_Worker(job) for _ in range(min(jobs, len(cohorts)))]
    try:
        for worker in workers:
            worker.give(waiting.pop())
        while any(worker.cohort for worker in workers):
            busy = {worker.connection: worker for worker in workers if worker.cohort}
            for ready in multiprocessing.connection.wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # `wait` returns what it was given
                cohort = worker.cohort
                assert cohort is not None
                try:
                    event = worker.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    code = worker.stop()
                    workers[workers.index(worker)] = replacement = _Worker(job)
                    if cohort.id in died_before:
                        yield Failed(cohort, "WorkerDied", f"the worker process died twice (exit code {code})", "")
                    else:
                        died_before.add(cohort.id)
                        waiting.append(cohort)
                    worker = replacement
                else:
                    if isinstance(event, OptbenchError):
                        raise event
                    yield event
                    if not isinstance(event, Finished | Failed):
                        continue
                    worker.cohort = None
                if waiting:
                    worker.give(waiting.pop())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()
        self.cohort: Cohort | None = None

    def give(self, cohort: Cohort) -> None:
        self.cohort = cohort
        with contextlib.suppress(OSError):  # it died while it was idle: reading from it will say so
            self.connection.send(cohort)

    def stop(self) -> int | None:
        self.cohort = None
        self.connection.close()
        self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _work(connection: multiprocessing.connection.Connection, job: Job) -> None:
    """Main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic CUDA products need
    import torch

    from optbench.data import load
    from optbench.engine import Setting, train

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    device = torch.device(job.device)
    settings: dict[str, Setting] = {}
    while True:
        try:
            cohort: Cohort = connection.recv()
        except EOFError:
            return
        try:
            if cohort.experiment not in settings:
                experiment = job.suite.experiments[cohort.experiment]
                dataset = load(experiment.dataset, job.data_dir, download=False)
                settings.clear()  # one experiment's arrays at a time
                settings[cohort.experiment] = Setting.of(experiment, dataset, job.suite.seed, device)
            results = train(cohort, settings[cohort.experiment], connection.send)
            weights = tuple(
                (result.trial, {name: tensor.numpy() for name, tensor in result.weights.items()})
                for result in results
                if result.weights is not None
            )
            rows = tuple((result.trial, row) for result in results for row in result.rows)
            connection.send(Finished(cohort, rows, weights))
        except OptbenchError as error:
            connection.send(error)
        except Exception as error:  # whatever it is, the other cohorts go on and the user is told
            connection.send(Failed(cohort, type(error).__name__, str(error), traceback.format_exc()))
