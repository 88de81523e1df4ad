"""Watching a training that Python began: the command line's progress, or notes kept until its end."""

from __future__ import annotations

import contextlib

from optbench.execution.view import View


def watching(notes: list[str], *, progress: bool) -> contextlib.AbstractContextManager[View]:
    """Return a view for a `with` block: with `progress` that of the command line, else one that adds to `notes`."""
    if not progress:
        return contextlib.nullcontext(_Noting(notes))
    from optbench.cli.training import Request, watched  # late: nothing else here needs it

    return watched(Request())


class _Noting(View):
    """Keeps what a reader should know until the run has ended."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def warning(self, text: str) -> None:
        self._notes.append(text)
