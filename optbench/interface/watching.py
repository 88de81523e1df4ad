"""Views of training started from Python: the command line's progress, or warnings collected until training ends."""

from __future__ import annotations

import contextlib

from optbench.execution.view import View


def watching(notes: list[str], *, progress: bool) -> contextlib.AbstractContextManager[View]:
    """Return a context manager for a view: the command line's if `progress`, else one that adds warnings to `notes`."""
    if not progress:
        return contextlib.nullcontext(_Noting(notes))
    from optbench.cli.training import Request, watched  # imported late, because nothing else here needs it

    return watched(Request())


class _Noting(View):
    """A view that collects warnings, to be shown when the run has ended."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def warning(self, text: str) -> None:
        self._notes.append(text)
