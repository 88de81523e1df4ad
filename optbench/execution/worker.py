"""A worker process: its imports and its loop."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import socket
import threading
from typing import TYPE_CHECKING

from optbench.execution.nursery import heedless

if TYPE_CHECKING:
    from optbench.data import Dataset
    from optbench.engine import Workspace
    from optbench.execution.messages import Answer, Data, Job, Unit
    from optbench.kinds import Kind


def prepare() -> None:
    """Import the modules that workers need and configure the process, without opening a device or running user code."""
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # output of users' code is not a result, so it must not go to standard output
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed for deterministic CUDA products
    import torch

    import optbench.execution.work  # noqa: F401  # this imports the other modules
    from optbench.engine.determinism import ask_for_determinism
    from optbench.engine.uncompiled import spare_dynamo

    torch.set_num_threads(1)
    ask_for_determinism()
    spare_dynamo()
    _keep_memory()


KEPT_BELOW = 32 * 2**20
"""Maximum size in bytes of arrays whose memory the process keeps when they are freed."""


def _keep_memory() -> None:
    """Configure the allocator to keep freed memory, because every step allocates and frees arrays of several megabytes.

    Otherwise, the operating system would provide the pages of each array again, which takes as long as filling the
    array. With an allocator other than glibc's, this function has no effect.
    """
    trim_threshold, mmap_threshold = -1, -3  # as in malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(mmap_threshold, KEPT_BELOW)
        allocator.mallopt(trim_threshold, 2**31 - 1)


def _end_with_parent() -> None:
    """Wait for the parent to end, then end this process, which must not write while another process resumes the run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(connection: multiprocessing.connection.Connection, device: str) -> None:
    """Main function of a worker process: receive a job, then units of this job, then possibly another job."""
    heedless()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()
    from optbench.errors import KindError, OptbenchError
    from optbench.execution.backend import Refused
    from optbench.execution.elsewhere import unavailable, unlike
    from optbench.execution.messages import Data, Job
    from optbench.execution.work import do, failed
    from optbench.targets import use

    desk: _Desk | None = None
    while True:
        try:
            received: Job | Data | Unit = connection.recv()
        except EOFError:
            return
        if isinstance(received, Job):
            use(received.sources)
            if received.elsewhere is not None and (difference := unlike(received)) is not None:
                if not received.elsewhere.force:
                    connection.send(Refused(f"{difference} on {socket.gethostname()}"))
                noted = dataclasses.replace(received.elsewhere, notes=(f"trained with different code: {difference}",))
                received = dataclasses.replace(received, elsewhere=noted)
            if received.elsewhere is not None and (reason := unavailable(device)) is not None:
                connection.send(Refused(f"{reason} on {socket.gethostname()}"))
            desk = _Desk(received, device)
            continue
        assert desk is not None
        if isinstance(received, Data):
            desk.data[received.key] = received.content
            continue
        unit = received
        try:
            workspace, job = desk.workspace(unit.experiment), desk.job
            _answer(do(unit, workspace, connection.send, job.interim, job.elsewhere), connection)
        except KindError as error:
            _answer(failed(unit, error), connection)
        except OptbenchError as error:
            connection.send(error)
        except Exception as error:  # from the workspace, or from pickling an answer, before any of it is sent
            _answer(failed(unit, error), connection)


class _Desk:
    """Data that a worker keeps between the units of a job: the last workspace and the last dataset."""

    def __init__(self, job: Job, device: str) -> None:
        from optbench.data.loading import keeping_last

        self.job = job
        self.data: dict[str, bytes] = {}
        """The pickled datasets that the main process has sent, by `Data.key`."""
        self._device = device
        self._workspaces: dict[str, Workspace] = {}  # by experiment
        self._load_once = keeping_last(self._load)

    def workspace(self, name: str) -> Workspace:
        """Return the workspace of an experiment. Only the latest workspace is kept."""
        import torch

        from optbench.engine import Workspace
        from optbench.engine.device import settle

        if name not in self._workspaces:
            experiment, device = self.job.suite.experiments[name], torch.device(self._device)
            self._workspaces.clear()  # keep only one experiment's arrays in memory
            dataset = self._load_once(experiment.dataset)
            settle(device)
            other = None if experiment.transfer is None else self._load(experiment.transfer)
            self._workspaces[name] = Workspace.of(experiment, dataset, self.job.suite.seed, device, other)
            self.data.clear()
        return self._workspaces[name]

    def _load(self, settings: Kind) -> Dataset:
        if (content := self.data.get(settings.model_dump_json())) is not None:
            from optbench.execution.parcels import unpickled

            found: Dataset = unpickled(content)
            return found
        from optbench.data import load

        return load(settings, self.job.data_dir, download=False)


def _answer(answer: Answer, connection: multiprocessing.connection.Connection) -> None:
    """Send an answer, or end this process if its device is broken, so that another process retries the unit."""
    from optbench.engine.faults import speaks_of_broken_device
    from optbench.execution.messages import Failed

    if isinstance(answer, Failed) and speaks_of_broken_device(answer.message):
        os._exit(1)
    connection.send(answer)
