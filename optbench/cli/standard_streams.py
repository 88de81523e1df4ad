"""Handling of standard streams that cannot be written to: closed, on a full disk, or without a reader.

Like `optbench.cli.app`, this module imports nothing slow.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def open_missing() -> None:
    """Replace standard output and standard error if they were closed at the start of the process.

    Writing to the replacement for standard output raises OSError, because results would otherwise be lost silently.
    Messages written to the replacement for standard error are discarded.
    """
    # Each replacement occupies the stream's descriptor, so that no other file receives output meant for the stream.
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: PTH123, SIM115


def undelivered(stream: TextIO) -> OSError | None:
    """Flush a stream and return None; on failure, discard the stream's output and return the error."""
    try:
        stream.flush()
    except OSError as error:
        discard(stream)
        return error
    return None


def discard(stream: TextIO) -> None:
    """Discard a stream's buffered and further output, because flushing it at exit would raise the error again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
