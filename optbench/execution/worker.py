"""A worker process: what it imports, and its loop."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import threading
from typing import TYPE_CHECKING

from optbench.execution.nursery import heedless

if TYPE_CHECKING:
    from optbench.data import Dataset
    from optbench.engine import Workspace
    from optbench.execution.messages import Answer, Job, Unit


def prepare() -> None:
    """Import what every worker needs and settle what holds for all of them; opens no device and runs no user's code."""
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what a user's optimizer prints is no result
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic CUDA products need
    import torch

    import optbench.execution.work  # noqa: F401  # which imports the others
    from optbench.engine.determinism import ask_for_determinism
    from optbench.engine.uncompiled import spare_dynamo

    torch.set_num_threads(1)
    ask_for_determinism()
    spare_dynamo()
    _keep_memory()


KEPT_BELOW = 32 * 2**20
"""Bytes of an array whose memory stays with the process when it is let go."""


def _keep_memory() -> None:
    """Tell the allocator to keep what is freed: an array of megabytes is made and let go at every step.

    Otherwise each of its pages comes from the system anew, which costs as much as filling it. Where the allocator is
    not glibc's, nothing is said.
    """
    trim_threshold, mmap_threshold = -1, -3  # as in malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(mmap_threshold, KEPT_BELOW)
        allocator.mallopt(trim_threshold, 2**31 - 1)


def _end_with_parent() -> None:
    """End this process when its parent was killed: it would write beside the process that resumes the run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(connection: multiprocessing.connection.Connection, device: str) -> None:
    """Main function of a worker process: is sent a job, then units of it, then perhaps another job."""
    heedless()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()
    import torch

    from optbench.data import load
    from optbench.engine import Workspace
    from optbench.engine.device import settle
    from optbench.engine.transfer import load_transfer
    from optbench.errors import KindError, OptbenchError
    from optbench.execution.messages import Job
    from optbench.execution.work import do, failed
    from optbench.targets import use

    job: Job | None = None
    workspaces: dict[str, Workspace] = {}  # the last one, by its experiment
    loaded: tuple[str, Dataset] | None = None  # the last one, by its settings
    while True:
        try:
            received: Job | Unit = connection.recv()
        except EOFError:
            return
        if isinstance(received, Job):
            job = received
            use(job.sources)
            workspaces.clear()
            loaded = None
            continue
        assert job is not None
        unit = received
        try:
            if unit.experiment not in workspaces:
                experiment = job.suite.experiments[unit.experiment]
                workspaces.clear()  # one experiment's arrays at a time
                wanted = experiment.dataset.model_dump_json()
                if loaded is None or loaded[0] != wanted:
                    loaded = None
                    loaded = wanted, load(experiment.dataset, job.data_dir, download=False)
                settle(torch.device(device))
                other = load_transfer(experiment, job.data_dir)
                workspaces[unit.experiment] = Workspace.of(
                    experiment, loaded[1], job.suite.seed, torch.device(device), other
                )
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
    from optbench.execution.messages import Failed

    if isinstance(answer, Failed) and speaks_of_broken_device(answer.message):
        os._exit(1)
    connection.send(answer)
