"""Messages between two processes that share only a folder, which may be on a network file system."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from optbench.execution.parcels import pickled, unpickled

BEAT = 2.0
"""Minimum seconds between touches of a `Pulse`'s file, because each touch is a request to the file server."""


class Mailbox:
    """The messages in one direction: a folder of numbered files, each of which is put in place by a single rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def put(self, message: object) -> None:
        """Send a message. Raises OSError if the message cannot be written."""
        name = f"{next(self._numbers):08d}"
        writing = self.folder / f".{name}"
        writing.write_bytes(pickled(message))
        writing.rename(self.folder / name)

    def take(self) -> list[Any]:
        """Return the messages that have arrived since the last call, in order, and remove them.

        Messages are found by listing the folder rather than by opening the next file by name, because network file
        systems cache the absence of a file for a while.

        Raises:
            OSError: the folder or a message cannot be read.
            DamagedError: a file is not a message.
        """
        found = []
        for file in sorted(file for file in self.folder.iterdir() if not file.name.startswith(".")):
            found.append(unpickled(file.read_bytes()))
            file.unlink()
        return found


class Pulse:
    """A file that one process touches to show another process that it is alive; their clocks need not agree."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: float | None = None
        self._changed_at = time.monotonic()
        self._beaten_at = -float("inf")

    def beat(self) -> None:
        """Touch the file, unless it was touched less than `BEAT` seconds ago. Raises OSError if this fails."""
        if (now := time.monotonic()) - self._beaten_at >= BEAT:
            self._file.touch()
            self._beaten_at = now

    def silence(self) -> float:
        """Return the seconds since the file was last seen to change. Raises OSError if there is no file."""
        if (now := self._file.stat().st_mtime) != self._last:
            self._last, self._changed_at = now, time.monotonic()
        return time.monotonic() - self._changed_at
