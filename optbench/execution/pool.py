"""Worker processes: each trains cohorts, or compares solutions, with one thread; the parent writes what they find.

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
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from optbench.errors import KindError, OptbenchError
from optbench.execution.messages import Answer, Compare, Compared, Divide, Failed, Finished, Job, Train, Unit, halved
from optbench.plan import Cohort
from optbench.store.interim import Begun
from optbench.targets import starting_processes, use

if TYPE_CHECKING:
    from optbench.engine import Progress, Workspace

PIECES = 8
"""Into so many, where there are as many, goes what a worker had that died: the training to blame costs few others."""


class Pool:
    """Up to one worker process for each of `devices`, started when there is work; they stay until it is closed."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._workers: list[_Worker] = []

    def train(
        self,
        units: Sequence[Train],
        job: Job,
        more: Callable[[], Sequence[Compare]] = tuple,
        places: Callable[[Cohort], Mapping[str, Begun]] = lambda cohort: {},
    ) -> Iterator[Progress | Finished | Compared | Failed]:
        """Do the units, in order of starting; events as they come.

        more: what there is to compare by now; asked at first and after every end, and done when all training has begun.
        places: where the trials of a piece go on by now. Units that are too large for memory are halved, and what a
        worker had that died (killed, out of memory) is tried once more, in pieces down to a training alone.

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
                try:
                    event = worker.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
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
                else:
                    if isinstance(event, OptbenchError):
                        raise event
                    if isinstance(event, Divide):
                        waiting += reversed(halved(event, places))
                    else:
                        yield event
                        if not isinstance(event, Finished | Compared | Failed):
                            continue
                    worker.unit = None
                waiting[:0] = reversed(more())
                self._hand_out(waiting, job)

    def _hand_out(self, waiting: list[Unit], job: Job) -> None:
        """Give waiting units, the last first, to idle workers, and start workers while there are more units than those.

        A user's code can change its process in ways that cannot be undone (patch PyTorch, start threads, leave
        modules), so a process that has run it gets no other unit: one that runs other code starts a process of its own.
        """
        idle = [worker for worker in self._workers if worker.unit is None]
        started = len(self._workers)
        new = [_Worker(device) for device in self._devices[started : started + max(0, len(waiting) - len(idle))]]
        self._workers += new
        # Those first that can serve something as they are, so that no process is replaced in vain.
        for worker in sorted((*idle, *new), key=lambda worker: not any(map(worker.serves, waiting))):
            if not waiting:
                return
            served = next((i for i in reversed(range(len(waiting))) if worker.serves(waiting[i])), None)
            unit = waiting.pop(-1 if served is None else served)
            (worker if served is not None else self._replace(worker)).give(unit, job)

    def _replace(self, worker: _Worker) -> _Worker:
        """End a worker's process; the worker that takes its place, on the same device."""
        worker.stop()
        fresh = _Worker(worker.device)
        self._workers[self._workers.index(worker)] = fresh
        return fresh

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for worker in self._workers:
            worker.process.terminate()  # all of them, before any is waited for
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def kill(self) -> None:
        """End the processes without waiting for them."""
        for worker in self._workers:
            worker.process.kill()


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
    def __init__(self, device: str) -> None:
        self.device = device
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, device), daemon=True)
        with starting_processes():
            self.process.start()
        theirs.close()
        self.unit: Unit | None = None
        self._job: Job | None = None
        self._user_code: frozenset[str] = frozenset()

    def serves(self, unit: Unit) -> bool:
        """True if no user's code but the unit's own has run in this process."""
        return not self._user_code or self._user_code == unit.user_code

    def give(self, unit: Unit, job: Job) -> None:
        self.unit = unit
        self._user_code |= unit.user_code
        with contextlib.suppress(OSError):  # it died while it was idle: reading from it will say so
            if self._job is not job:
                self.connection.send(job)
                self._job = job
            self.connection.send(unit)

    def stop(self) -> int | None:
        self.unit = None
        self.connection.close()
        self.process.terminate()
        self.process.join(timeout=1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def _end_with_parent() -> None:
    """A killed parent tells nobody; what its workers would go on to do is in the way of whoever resumes the run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(connection: multiprocessing.connection.Connection, device: str) -> None:
    """Main function of a worker process: is sent a job, then units of it, then perhaps another job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what a user's optimizer prints is no result
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic CUDA products need
    import torch

    from optbench.data import load
    from optbench.engine import Workspace
    from optbench.engine.determinism import ask_for_determinism
    from optbench.engine.device import settle
    from optbench.engine.uncompiled import spare_dynamo
    from optbench.execution.work import do, failed

    torch.set_num_threads(1)
    ask_for_determinism()
    spare_dynamo()
    job: Job | None = None
    workspaces: dict[str, Workspace] = {}
    while True:
        try:
            received: Job | Unit = connection.recv()
        except EOFError:
            return
        if isinstance(received, Job):
            job = received
            use(job.sources)
            workspaces.clear()
            continue
        assert job is not None
        unit = received
        try:
            if unit.experiment not in workspaces:
                experiment = job.suite.experiments[unit.experiment]
                dataset = load(experiment.dataset, job.data_dir, download=False)
                workspaces.clear()  # one experiment's arrays at a time
                settle(torch.device(device))
                workspaces[unit.experiment] = Workspace.of(experiment, dataset, job.suite.seed, torch.device(device))
            workspace = workspaces[unit.experiment]
            _answer(do(unit, workspace, connection.send, job.interim), connection)
        except KindError as error:
            _answer(failed(unit, error), connection)
        except OptbenchError as error:
            connection.send(error)
        except Exception as error:  # in making the workspace, or in sending: nothing is sent until all of it is pickled
            _answer(failed(unit, error), connection)


def _answer(answer: Answer, connection: multiprocessing.connection.Connection) -> None:
    """Send an answer; or end, where nothing works on the device any more in this process: another one tries again."""
    from optbench.engine.faults import speaks_of_broken_device

    if isinstance(answer, Failed) and speaks_of_broken_device(answer.message):
        os._exit(1)
    connection.send(answer)
