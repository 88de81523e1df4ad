"""Standard streams that cannot be written: closed, on a full disk, or without a reader.

Like `optbench.cli.app`, this module imports nothing slow.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def open_missing() -> None:
    """Replace standard output and standard error if they were closed at the start of the process.

    Writing to the replacement of standard output raises OSError, because results would be lost; messages written to
    that of standard error are discarded.
    """
    # Each occupies its descriptor, so that no other file receives output meant for the stream.
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: PTH123, SIM115


def undelivered(stream: TextIO) -> OSError | None:
    """Flush a stream; on failure discard its buffer and return the error, else None."""
    try:
        stream.flush()
    except OSError as error:
        discard(stream)
        return error
    return None


def discard(stream: TextIO) -> None:
    """Discard a stream's buffered and further output, which would raise again while Python shuts down."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
