"""Standard output and standard error that take nothing: closed, on a full disk, or without a reader any more.

Imports nothing heavy, as `optbench.cli.app` does not.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def open_missing() -> None:
    """Give Python the streams that it has not, because they were closed when the process began.

    Writing to this standard output raises OSError, as there is nowhere for results to go. Messages may be lost.
    """
    # Each takes the descriptor that was free, so that no file gets it and with it what was meant for the stream.
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: PTH123, SIM115


def undelivered(stream: TextIO) -> OSError | None:
    """Why a stream does not take what is buffered for it, which is then given up; None where all is delivered."""
    try:
        stream.flush()
    except OSError as error:
        discard(stream)
        return error
    return None


def discard(stream: TextIO) -> None:
    """Give up what is buffered for a stream, and what follows: it would raise again while Python shuts down."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
