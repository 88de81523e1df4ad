"""The lock of a run directory. It ensures that only one process at a time writes to the directory."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import IO

from optbench.errors import StoreError
from optbench.store.files import reported

NAME = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""Numbers of the errors that are raised if the file system has no locks."""
HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
"""Numbers of the errors that are raised if another process holds the lock."""


class RunLock:
    """A lock held from construction until `release` or the end of the process.

    The lock file names the process that holds the lock. The lock itself belongs to the operating system, so a leftover
    file is harmless.

    Raises:
        StoreError: another process holds the lock, the directory cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        with reported(self._path):
            self._file = self._open()
            try:
                self._file.seek(0)
                self._file.truncate()
                json.dump({"process": os.getpid(), "since": now()}, self._file)
                self._file.flush()
            except OSError:
                self.release()
                raise

    def _open(self) -> IO[str]:
        while True:
            file = self._path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                with file:
                    if error.errno in UNSUPPORTED:
                        self._path.unlink(missing_ok=True)
                        raise StoreError(
                            f"{self._path.parent.parent}: this file system has no locks ({error.strerror}), so other "
                            "processes could write the same run; choose a folder on another file system with --runs-dir"
                        ) from None
                    if error.errno not in HELD:
                        raise
                    file.seek(0)
                    owner = _owner(file.read())
                raise StoreError(
                    f"{self._path.parent}: this run is being written by {owner}; "
                    "wait until that process has ended, or stop it first"
                ) from None
            # The previous holder may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            file.close()

    def release(self) -> None:
        """Release the lock. This can be called more than once."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._path.unlink()
            with contextlib.suppress(OSError):  # closing repeats the write that failed on a full disk
                self._file.close()


def _owner(text: str) -> str:
    try:
        record = json.loads(text)
        return f"process {record['process']} (since {record['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def now() -> str:
    """Return the current time in UTC, in the format used in run records."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
