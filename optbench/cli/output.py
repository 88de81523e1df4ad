"""Consoles and files: results go to standard output or a file, everything else to standard error.

rich respects NO_COLOR, and writes no colours to a pipe.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from optbench.cli.standard_streams import discard
from optbench.errors import StoreError, escaped

if TYPE_CHECKING:  # imported late, because `list` and a dry run write no report
    from optbench.report import Report

PIPE_WIDTH = 80
UNWRAPPED = 100_000
"""Width in columns, larger than that of any table, so that each row is one line in a pipe."""


def deliver(document: Report, chosen: str, output: str | None) -> None:
    """Write a document to the file `output`, or to standard output if it is None or `-`.

    Raises:
        StoreError: the file or standard output cannot be written.
    """
    from optbench.report.formats import render_text, terminal

    if output is not None and output != "-":
        from optbench.store.files import write_text

        write_text(Path(output), render_text(document, chosen))
    elif chosen == "terminal":
        with results() as console:
            terminal.show(document, console)
    else:
        write_out(render_text(document, chosen))


def has_width() -> bool:
    """Return whether output must fit a given width: the terminal's, or `COLUMNS`."""
    return sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))


@contextlib.contextmanager
def results(pipe_width: int = PIPE_WIDTH) -> Iterator[Console]:
    """Yield a console for results; its content is written to standard output at the end of the block."""
    # Otherwise rich would use the terminal's width even for a file, whose content must not depend on the window.
    console = Console(file=sys.stdout, width=None if has_width() else pipe_width)
    with console.capture() as captured:
        yield console
    # rich pads cells with blanks, which files and logs do not need
    write_out(captured.get() if console.is_terminal else re.sub(" +$", "", captured.get(), flags=re.MULTILINE))


def write_out(text: str) -> None:
    """Write to standard output, ignoring a closed pipe (`| head`).

    Raises:
        StoreError: standard output cannot be written for any other reason.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise StoreError(f"standard output: cannot write: {error.strerror or error}") from error


def say(text: str) -> None:
    """Print a message on standard error line by line, without markup, wrapping or control characters."""
    with contextlib.suppress(OSError):  # a message that cannot be shown must not end the program
        sys.stderr.writelines(f"{escaped(line)}\n" for line in text.split("\n"))
        sys.stderr.flush()
