"""Worker processes: each trains cohorts, or compares solutions, with one thread; the parent writes what they find.

One thread each, because a product split over threads sums in another order than the same product alone: with one
thread a trial's bits do not depend on its cohort, and the cores are kept busy by processes instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from optbench.errors import OptbenchError
from optbench.plan import Cohort, Comparison, Trial
from optbench.store.pairs import PairRow
from optbench.store.tables import Row, TrialRow
from optbench.suite import Suite

if TYPE_CHECKING:
    from optbench.engine import Progress, Setting, TrialResult

Weights = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know before its first cohort."""

    suite: Suite
    device: str
    data_dir: Path | None


@dataclass(frozen=True)
class Compare:
    """Work for a worker: the solutions of one seed.

    places: file of the final weights of every trial that has any. missing: why the others have none.
    """

    comparison: Comparison
    places: Mapping[str, Path]
    missing: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.comparison.id

    @property
    def experiment(self) -> str:
        return self.comparison.experiment


Unit: TypeAlias = Cohort | Compare
"""What one worker does at a time."""


@dataclass(frozen=True)
class Finished:
    """A cohort was trained: rows of every trial, and final weights of those that have any."""

    cohort: Cohort
    rows: tuple[tuple[Trial, Row], ...]
    weights: tuple[tuple[Trial, Weights], ...]


@dataclass(frozen=True)
class Compared:
    """The solutions of one seed were compared: rows of every pair."""

    comparison: Comparison
    rows: tuple[PairRow, ...]


@dataclass(frozen=True)
class Failed:
    """A cohort could not be trained, or solutions not compared, for a reason that is not the user's settings."""

    unit: Unit
    error_type: str
    message: str
    details: str


class Pool:
    """Up to `jobs` worker processes, started when there is work for them; they stay until the pool is closed."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._workers: list[_Worker] = []

    def train(
        self, cohorts: Sequence[Cohort], job: Job, more: Callable[[], Sequence[Compare]] = tuple
    ) -> Iterator[Progress | Finished | Compared | Failed]:
        """Train the cohorts, in order of starting; events as they come.

        more: what there is to compare by now; asked at first and after every end, and done when all training has begun.
        A worker that dies (killed, out of memory) costs only the unit it had, which is tried once more.

        Raises:
            OptbenchError: what a worker raised because of the user's settings.
        """
        waiting: list[Unit] = [*reversed(more()), *reversed(cohorts)]
        died_before: set[str] = set()
        workers = self._workers
        workers += [_Worker() for _ in range(min(self._jobs, len(waiting)) - len(workers))]
        for worker in workers:
            if waiting:
                worker.give(waiting.pop(), job)
        while any(worker.unit for worker in workers):
            busy = {worker.connection: worker for worker in workers if worker.unit}
            for ready in multiprocessing.connection.wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # `wait` returns what it was given
                unit = worker.unit
                assert unit is not None
                try:
                    event = worker.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    code = worker.stop()
                    workers[workers.index(worker)] = _Worker()
                    if unit.id in died_before:
                        yield Failed(unit, "WorkerDied", f"the worker process died twice (exit code {code})", "")
                    else:
                        died_before.add(unit.id)
                        waiting.append(unit)
                else:
                    if isinstance(event, OptbenchError):
                        raise event
                    yield event
                    if not isinstance(event, Finished | Compared | Failed):
                        continue
                    worker.unit = None
                waiting[:0] = reversed(more())
                for idle in workers:
                    if waiting and idle.unit is None:
                        idle.give(waiting.pop(), job)

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.unit: Unit | None = None
        self._job: Job | None = None

    def give(self, unit: Unit, job: Job) -> None:
        self.unit = unit
        with contextlib.suppress(OSError):  # it died while it was idle: reading from it will say so
            if self._job is not job:
                self.connection.send(job)
                self._job = job
            self.connection.send(unit)

    def stop(self) -> int | None:
        self.unit = None
        self.connection.close()
        self.process.terminate()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _work(connection: multiprocessing.connection.Connection) -> None:
    """Main function of a worker process: is sent a job, then units of it, then perhaps another job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic CUDA products need
    import torch

    from optbench.data import load
    from optbench.engine import Setting

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    job: Job | None = None
    settings: dict[str, Setting] = {}
    while True:
        try:
            received: Job | Unit = connection.recv()
        except EOFError:
            return
        if isinstance(received, Job):
            job = received
            settings.clear()
            continue
        assert job is not None
        unit = received
        try:
            if unit.experiment not in settings:
                experiment = job.suite.experiments[unit.experiment]
                dataset = load(experiment.dataset, job.data_dir, download=False)
                settings.clear()  # one experiment's arrays at a time
                settings[unit.experiment] = Setting.of(experiment, dataset, job.suite.seed, torch.device(job.device))
            setting = settings[unit.experiment]
            if isinstance(unit, Cohort):
                connection.send(_train(unit, setting, connection.send))
            else:
                connection.send(_compare(unit, setting))
        except OptbenchError as error:
            connection.send(error)
        except Exception as error:  # whatever it is, the other cohorts go on and the user is told
            connection.send(Failed(unit, type(error).__name__, str(error), traceback.format_exc()))


def _train(cohort: Cohort, setting: Setting, notify: Callable[[Progress], None]) -> Finished:
    results = _train_what_fits(cohort, setting, notify)
    weights = tuple(
        (result.trial, {name: tensor.numpy() for name, tensor in result.weights.items()})
        for result in results
        if result.weights is not None
    )
    return Finished(cohort, tuple((result.trial, row) for result in results for row in result.rows), weights)


def _train_what_fits(
    cohort: Cohort, setting: Setting, notify: Callable[[Progress], None], whole: int | None = None
) -> list[TrialResult]:
    """Train a cohort; one that memory does not hold, half by half, down to a single member.

    No result depends on it, as none does on its companions; the notes of the trials say so all the same. whole: how
    many members there were before.
    """
    import torch

    from optbench.engine import train

    members = len(cohort.trainings)
    try:
        results = train(cohort, setting, notify)
    except (MemoryError, RuntimeError) as error:
        # On a CPU PyTorch has no class of its own for it.
        if members == 1 or not (
            isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        ):
            raise
    else:
        if whole is None:
            return results
        note = f"out of memory with {whole} members together, trained {members} at a time"
        return [dataclasses.replace(result, rows=tuple(_noted(row, note) for row in result.rows)) for result in results]
    # Outside of the handler, whose traceback would keep what has been allocated.
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    halves = cohort.split(2)
    found = [result for half in halves for result in _train_what_fits(half, setting, notify, whole or members)]
    places = {trial.id: i for i, trial in enumerate(cohort.trials)}
    return sorted(found, key=lambda result: places[result.trial.id])


def _noted(row: Row, note: str) -> Row:
    if not isinstance(row, TrialRow):
        return row
    return dataclasses.replace(row, note="; ".join(filter(None, (row.note, note))))


def _compare(work: Compare, setting: Setting) -> Compared:
    from safetensors.torch import load_file

    from optbench.engine.pairs import compare

    rows = compare(work.comparison, setting, lambda trial: load_file(work.places[trial.id]), work.missing)
    return Compared(work.comparison, tuple(rows))
