"""Follow a training started from Python: show the command line's progress, or collect notes until it ends."""

from __future__ import annotations

import contextlib

from optbench.execution.view import View


def watching(notes: list[str], *, progress: bool) -> contextlib.AbstractContextManager[View]:
    """Return a view for a `with` block: the command line's if `progress`, else one that adds warnings to `notes`."""
    if not progress:
        return contextlib.nullcontext(_Noting(notes))
    from optbench.cli.training import Request, watched  # late: nothing else here needs it

    return watched(Request())


class _Noting(View):
    """A view that collects warnings, which are shown when the run has ended."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def warning(self, text: str) -> None:
        self._notes.append(text)
