"""Consoles: results go to standard output, everything else to standard error. rich respects NO_COLOR and pipes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console

PIPE_WIDTH = 80


@contextlib.contextmanager
def results() -> Iterator[Console]:
    """A console for results: what is printed on it goes to standard output at once, when the block ends.

    A reader that has gone (`| head`) is no reason to complain, nor to end a command otherwise than it would have.
    """
    # rich would take the width of whatever terminal is near: a file must not depend on the window it was made in.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width)
    with console.capture() as captured:
        yield console
    try:
        sys.stdout.write(captured.get())
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise again while Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """A message on standard error, as it is: no markup, no wrapping."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
