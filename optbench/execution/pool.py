"""Worker processes: each trains cohorts, or compares solutions, with one thread; the parent writes what they find.

One thread each, because a product split over threads sums in another order than the same product alone: with one
thread a trial's bits do not depend on its cohort, and the cores are kept busy by processes instead.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from optbench.errors import OptbenchError
from optbench.execution.messages import Answer, Compare, Compared, Divide, Failed, Finished, Job, Train, Unit, halved
from optbench.execution.nursery import Nursery, nursery
from optbench.plan import Cohort
from optbench.store.interim import Begun

if TYPE_CHECKING:
    from optbench.engine import Progress

PATIENCE = 1.0
"""Seconds that a process has to end by itself."""
PIECES = 8
"""Into so many, where there are as many, goes what a worker had that died: the training to blame costs few others."""


class Pool:
    """Up to one worker process for each of `devices`, started when there is work; they stay until it is closed."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._nursery = nursery(devices)
        self._workers: list[_Worker] = []

    def train(
        self,
        units: Sequence[Train],
        job: Job,
        more: Callable[[], Sequence[Compare]] = tuple,
        places: Callable[[Cohort], Mapping[str, Begun]] = lambda cohort: {},
        held: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Iterator[Progress | Finished | Compared | Failed]:
        """Do the units, in order of starting; events as they come.

        more: what there is to compare by now; asked at first and after every end, and done when all training has begun.
        places: where the trials of a piece go on by now. held: makes an interrupt wait; entered before an event is read
        from a worker, left after the caller has taken it, so that none is lost in between. Units that are too large for
        memory are halved, and what a worker had that died (killed, out of memory) is tried once more, in pieces down to
        a training alone.

        Raises:
            OptbenchError: what a worker raised because of the user's settings.
        """
        waiting: list[Unit] = [*reversed(more()), *reversed(units)]
        died_before: set[str] = set()
        workers = self._workers
        self._hand_out(waiting, job)
        while any(worker.unit for worker in workers):
            busy = {worker.connection: worker for worker in workers if worker.unit}
            for ready in multiprocessing.connection.wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # `wait` returns what it was given
                unit = worker.unit
                assert unit is not None
                with held():
                    event = worker.answer()
                    if isinstance(event, Finished | Compared | Failed):
                        worker.unit = None
                        self._hand_on(worker, waiting, job)
                    if event is not None and not isinstance(event, Divide | OptbenchError):
                        yield event
                if event is None:
                    worker.process.join(timeout=1)  # so that its own exit code is seen, not that of being stopped
                    code = worker.stop()
                    self._replace(worker)
                    if unit.id in died_before:
                        yield Failed(unit, "WorkerDied", f"the worker process died twice ({_cause(code)})")
                    else:
                        note = f"tried again after its worker process had died ({_cause(code)})"
                        pieces = unit.cohort.split(PIECES) if isinstance(unit, Train) else []
                        waiting += [Train(piece, places(piece), note) for piece in reversed(pieces)] or [unit]
                        singles = {piece.id for piece in pieces if len(piece.trainings) == 1}
                        died_before |= singles if pieces else {unit.id}
                elif isinstance(event, OptbenchError):
                    raise event
                elif isinstance(event, Divide):
                    worker.unit = None
                    waiting += reversed(halved(event, places))
                elif not isinstance(event, Finished | Compared | Failed):
                    continue
                waiting[:0] = reversed(more())
                self._hand_out(waiting, job)

    @staticmethod
    def _hand_on(worker: _Worker, waiting: list[Unit], job: Job) -> None:
        """Give an idle worker the next unit that its process serves, so that it has work while results are written.

        What it found last is not written yet, so nothing here may take long or fail: processes are neither stopped nor
        started.
        """
        if (served := worker.next_of(waiting)) is not None:
            worker.give(waiting.pop(served), job)

    def _hand_out(self, waiting: list[Unit], job: Job) -> None:
        """Give waiting units, the last first, to idle workers, and start workers while there are more units than those.

        A user's code can change its process in ways that cannot be undone (patch PyTorch, start threads, leave
        modules), so a process that has run it gets no other unit: one that runs other code starts a process of its own.
        """
        idle = [worker for worker in self._workers if worker.unit is None]
        started = len(self._workers)
        more = max(0, len(waiting) - len(idle))
        new = [_Worker(device, self._nursery) for device in self._devices[started : started + more]]
        self._workers += new
        # Those first that can serve something as they are, so that no process is replaced in vain.
        for worker in sorted((*idle, *new), key=lambda worker: not any(map(worker.serves, waiting))):
            if not waiting:
                return
            served = worker.next_of(waiting)
            unit = waiting.pop(-1 if served is None else served)
            (worker if served is not None else self._replace(worker)).give(unit, job)

    def _replace(self, worker: _Worker) -> _Worker:
        """End a worker's process; the worker that takes its place, on the same device."""
        worker.stop()
        fresh = _Worker(worker.device, self._nursery)
        self._workers[self._workers.index(worker)] = fresh
        return fresh

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for worker in self._workers:
            worker.process.terminate()  # all of them, before any is waited for
        until = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.stop(max(0.0, until - time.monotonic()))
        self._workers.clear()
        self._nursery.close()

    def kill(self) -> None:
        """End the processes without waiting for them."""
        for worker in self._workers:
            worker.process.kill()
        self._nursery.kill()


def _cause(code: int | None) -> str:
    """`signal SIGKILL: the system does that when memory is short` of -9."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
    return f"{name}: the system sends it when memory is short" if name == "SIGKILL" else name


class _Worker:
    def __init__(self, device: str, nursery: Nursery) -> None:
        self.device = device
        self.connection, self.process = nursery.start(device)
        self.unit: Unit | None = None
        self._job: Job | None = None
        self._user_code: frozenset[str] = frozenset()

    def serves(self, unit: Unit) -> bool:
        """True if no user's code but the unit's own has run in this process."""
        return not self._user_code or self._user_code == unit.user_code

    def next_of(self, waiting: Sequence[Unit]) -> int | None:
        """The place of the last of the waiting units that it serves; None where it serves none."""
        return next((i for i in reversed(range(len(waiting))) if self.serves(waiting[i])), None)

    def answer(self) -> Progress | Answer | OptbenchError | None:
        """What its process has sent; None where the process has died."""
        try:
            event: Progress | Answer | OptbenchError = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return None
        return event

    def give(self, unit: Unit, job: Job) -> None:
        self.unit = unit
        self._user_code |= unit.user_code
        with contextlib.suppress(OSError):  # it died while it was idle: reading from it will say so
            if self._job is not job:
                self.connection.send(job)
                self._job = job
            self.connection.send(unit)

    def stop(self, seconds: float = PATIENCE) -> int | None:
        """End the process, and kill it where it is still there after `seconds`; its exit code."""
        self.unit = None
        self.connection.close()
        self.process.terminate()
        self.process.join(timeout=seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode
