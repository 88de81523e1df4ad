"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import pickle
import signal
import time
from collections.abc import Sequence

from optbench.execution.backend import Died, Message, Worker
from optbench.execution.messages import Data, Job, Unit
from optbench.execution.nursery import Nursery, nursery

PATIENCE = 1.0
"""Seconds that a process has to end by itself before it is killed."""


class LocalProcesses:
    """A `Backend` with one process for each of `devices`."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._nursery = nursery(devices)
        self._workers: list[LocalWorker] = []

    @property
    def device(self) -> str:
        return self._devices[0]

    @property
    def jobs(self) -> int:
        return len(self._devices)

    def begin(self, job: Job, units: Sequence[Unit]) -> None:
        """Do nothing: worker processes read the same files as this process."""

    def start(self, place: int) -> LocalWorker:
        self._workers.append(worker := LocalWorker(self._devices[place], self._nursery))
        return worker

    def wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        by_connection = {worker.connection: worker for worker in workers if isinstance(worker, LocalWorker)}
        # `wait` returns some of the connections it was given
        return [by_connection[ready] for ready in multiprocessing.connection.wait(list(by_connection))]  # type: ignore[index]

    def discard(self, worker: Worker) -> None:
        assert isinstance(worker, LocalWorker)
        worker.stop()
        self._workers.remove(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.terminate()  # all of them before waiting for any
        until = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.stop(max(0.0, until - time.monotonic()))
        self._workers.clear()
        self._nursery.close()

    def kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        self._nursery.kill()


class LocalWorker:
    """A worker process, and the main process's end of the connection to it."""

    is_ready = True

    def __init__(self, device: str, nursery: Nursery) -> None:
        self._device, self._nursery = device, nursery
        self.connection, self.process = nursery.start(device)
        self._job: Job | None = None

    def give(self, unit: Unit, job: Job, data: Sequence[Data] = ()) -> None:
        """Submit a unit. data: datasets that the worker needs, cannot read itself and has not received yet."""
        with contextlib.suppress(OSError):  # the process died while idle, which `receive` reports
            if self._job is not job:
                self.connection.send(job)
                self._job = job
            for one in data:
                self.connection.send(one)
            self.connection.send(unit)

    def receive(self) -> Message:
        try:
            event: Message = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process.join(timeout=1)  # so that `stop` returns the process's own exit code, not that of a signal
            return Died(_cause(self.stop()))
        return event

    def renew(self) -> None:
        self.stop()
        self.connection, self.process = self._nursery.start(self._device)
        self._job = None

    def stop(self, seconds: float = PATIENCE) -> int | None:
        """End the process, killing it if it is still alive after `seconds`, and return its exit code."""
        self.connection.close()
        self.process.terminate()
        self.process.join(timeout=seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _cause(code: int | None) -> str:
    """Describe an exit code, e.g. -9 as `SIGKILL, which the system sends when memory is short`."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
    return f"{name}, which the system sends when memory is short" if name == "SIGKILL" else name
