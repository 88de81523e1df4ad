"""An agent that starts a worker process on another machine.

The agent forwards messages between the worker and the main process. It imports neither torch nor users' code, so it
survives if the worker process dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.execution.backend import Died, Lost, Message
from optbench.execution.elsewhere import versions
from optbench.execution.local import LocalProcesses, LocalWorker
from optbench.execution.messages import Arrived, Compared, Data, Divide, Failed, Finished, Job, Saved
from optbench.execution.parcels import INTERIM, WEIGHTS, DamagedError, Parcel, unpack, unpickled

PREFIX = "optbench-worker-"
"""Start of the name of an agent's temporary folder, followed by the host, the process id and random letters."""
LINGER = 0.2
"""Seconds for which further messages are collected after the first one."""


@dataclass(frozen=True)
class Hello:
    """A message that an agent has started, on this host and with these versions."""

    host: str
    versions: Mapping[str, str]


class Agent:
    """An agent that runs one worker process for a main process on another machine.

    All methods must be called from one thread. After a call of `give`, `receive` must be called repeatedly until the
    unit has ended.
    """

    def __init__(self, device: str) -> None:
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{socket.gethostname()}-{os.getpid()}-"))
        self._processes = LocalProcesses([device])
        self._worker: LocalWorker = self._processes.start(0)
        self._job: tuple[str, Job] | None = None  # with its hash
        self._experiment: str | None = None  # the experiment whose datasets the process has
        self._died = False
        self._outbox: list[Message | Hello | Arrived] = [Hello(socket.gethostname(), versions())]

    def fetch(self, content: Any) -> bytes:
        """Return a parcel's bytes, given its `content`. Subclasses override this if the bytes are stored elsewhere."""
        assert isinstance(content, bytes)
        return content

    def give(self, unit: Parcel, job: Parcel, data: Mapping[str, Parcel]) -> None:
        """Submit a unit to the worker process. data: parcels with the experiment's datasets, by `Data.key`."""
        try:
            self._give(unit, job, data)
        except Exception as error:  # the main process would wait forever for a unit that no worker trains
            said = str(error) if isinstance(error, DamagedError | OSError) else f"{type(error).__name__}: {error}"
            self._outbox.append(Lost(f"{socket.gethostname()}: {said}"))

    def _give(self, unit: Parcel, job: Parcel, data: Mapping[str, Parcel]) -> None:
        if self._job is None or self._job[0] != job.sum:
            given: Job = unpickled(job.checked(self.fetch(job.content)))
            self._job = job.sum, dataclasses.replace(given, interim=self._folder / INTERIM)
            self._experiment = None
        for name in (INTERIM, WEIGHTS):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        (self._folder / INTERIM).mkdir()
        work = unpack(unit.checked(self.fetch(unit.content)), self._folder)
        sent: list[Data] = []
        if self._experiment != work.experiment:
            sent = [Data(key, parcel.checked(self.fetch(parcel.content))) for key, parcel in data.items()]
            self._experiment = work.experiment
        self._worker.give(work, self._job[1], sent)

    def receive(self, seconds: float) -> list[Message | Hello | Arrived]:
        """Wait up to `seconds` for messages, and return those received, in order."""
        until = time.monotonic() + seconds
        ended = bool(self._outbox) or self._died
        while not ended and self._worker.connection.poll(max(0.0, until - time.monotonic())):
            until = min(until, time.monotonic() + LINGER)
            message = self._worker.receive()
            self._died = isinstance(message, Died)  # until `renew`
            if isinstance(message, Saved):
                with contextlib.suppress(OSError):  # the next state has replaced it
                    files = {file.name: file.read_bytes() for file in message.part.iterdir()}
                    self._outbox.append(Arrived(message.part.name, files))
            else:
                self._outbox.append(message)
            ended = isinstance(message, Finished | Compared | Divide | Failed | Died | Exception)
        if not self._outbox and self._died:
            time.sleep(seconds)
        found, self._outbox = self._outbox, []
        return found

    def renew(self) -> None:
        """Replace the worker process with a new one."""
        self._experiment, self._died = None, False
        self._worker.renew()

    def close(self) -> None:
        """End the worker process and remove the agent's folder."""
        self._processes.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _sweep() -> None:
    """Remove the folders left by agents that were killed on this host.

    Folders from other hosts are kept, because several hosts may share the temporary directory.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(f"{PREFIX}{socket.gethostname()}-").rpartition("-")[0]
        if pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except (OSError, OverflowError):
                continue  # a process of another user
