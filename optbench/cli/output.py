"""Consoles and files: results go to standard output or to a file, everything else to standard error.

rich respects NO_COLOR and pipes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from optbench.cli.standard_streams import discard
from optbench.errors import StoreError, escaped

if TYPE_CHECKING:  # `list` and a dry run need no results
    from optbench.report import Document, Format

PIPE_WIDTH = 80
FILE_WIDTH = 120


@dataclass(frozen=True)
class Delivery:
    """What a command has to say, in whatever format it is asked for; only that one is made."""

    document: Callable[[], Document]
    json: Callable[[], str]
    csv: Callable[[], str]


def deliver(delivery: Delivery, chosen: Format, output: str | None) -> None:
    """Send it to standard output, or to the file `output` (`-`: standard output).

    Raises:
        StoreError: the file cannot be written.
    """
    to_file = output is not None and output != "-"
    if chosen == "terminal" and not to_file:
        from optbench.report.console import render

        with results() as console:
            render(delivery.document(), console)
        return
    text = _text(delivery, chosen)
    if to_file:
        from optbench.store.files import write_text

        assert output is not None
        write_text(Path(output), text)
    else:
        write_out(text)


def _text(delivery: Delivery, chosen: Format) -> str:
    if chosen in ("json", "csv"):
        return delivery.json() if chosen == "json" else delivery.csv()
    if chosen == "terminal":
        from optbench.report.console import render

        file = io.StringIO()
        render(delivery.document(), Console(file=file, width=FILE_WIDTH))
        return _without_padding(file.getvalue())
    from optbench.report.formats import render_text

    return render_text(delivery.document(), chosen)


@contextlib.contextmanager
def results() -> Iterator[Console]:
    """A console for results: what is printed on it goes to standard output at once, when the block ends."""
    # rich would take the width of whatever terminal is near: a file must not depend on the window it was made in.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width)
    with console.capture() as captured:
        yield console
    write_out(captured.get() if console.is_terminal else _without_padding(captured.get()))


def _without_padding(text: str) -> str:
    """rich fills cells up with blanks, which a file or a log does not need."""
    return "".join(f"{line.rstrip()}\n" for line in text.split("\n")).removesuffix("\n")


def write_out(text: str) -> None:
    """Write to standard output. A reader that has gone (`| head`) is no reason to complain, nor to end otherwise.

    Raises:
        StoreError: it cannot be written for another reason.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise StoreError(f"standard output: cannot write: {error.strerror or error}") from error


def say(text: str) -> None:
    """A message on standard error, line by line as it is: no markup, no wrapping, nothing that acts on a terminal."""
    with contextlib.suppress(OSError):  # nobody can be told, which is no reason to end
        sys.stderr.writelines(f"{escaped(line)}\n" for line in text.split("\n"))
        sys.stderr.flush()
