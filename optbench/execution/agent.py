"""On another machine: an agent starts a worker process there, and passes on what it is given and what it answers.

It imports neither torch nor users' code, so that it outlives what happens to the process that does.
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
"""How its folder is called, in the folder for temporary files; then follow its process id and a dash."""
LINGER = 0.2
"""Seconds in which messages that follow one another are gathered."""


@dataclass(frozen=True)
class Hello:
    """An agent has started: on which machine, and with which versions."""

    host: str
    versions: Mapping[str, str]


class Agent:
    """Gives one worker process the units of a run whose own process is elsewhere. Called by one thread.

    Between `give` and the end of a unit `receive` is called again and again.
    """

    def __init__(self, device: str) -> None:
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._processes = LocalProcesses([device])
        self._worker: LocalWorker = self._processes.start(0)
        self._job: tuple[str, Job] | None = None  # by its sum
        self._experiment: str | None = None  # whose datasets the process has
        self._died = False
        self._outbox: list[Message | Hello | Arrived] = [Hello(socket.gethostname(), versions())]

    def fetch(self, content: Any) -> bytes:
        """Return the bytes of a parcel; where a backend puts them elsewhere, its agents fetch them from there."""
        assert isinstance(content, bytes)
        return content

    def give(self, unit: Parcel, job: Parcel, data: Mapping[str, Parcel]) -> None:
        """Submit a unit. data: the datasets of its experiment, by their settings."""
        try:
            self._give(unit, job, data)
        except (DamagedError, OSError) as error:
            self._outbox.append(Lost(f"{socket.gethostname()}: {error}"))

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
        """Return what there is to tell, in order; nothing where nothing happened for so many seconds."""
        until = time.monotonic() + seconds
        ended = bool(self._outbox) or self._died
        while not ended and self._worker.connection.poll(max(0.0, until - time.monotonic())):
            until = min(until, time.monotonic() + LINGER)
            message = self._worker.receive()
            self._died = isinstance(message, Died)  # until it is renewed
            if isinstance(message, Saved):
                with contextlib.suppress(OSError):  # the next one has taken its place
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
        """Continue in a fresh process."""
        self._experiment, self._died = None, False
        self._worker.renew()

    def close(self) -> None:
        """End the process, and leave nothing behind."""
        self._processes.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _sweep() -> None:
    """Remove the folders of agents that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except (OSError, OverflowError):
                continue  # another user's
