"""The interface through which a session reports the progress of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.execution.schedule import Plan
from optbench.plan import Trial
from optbench.store.tables import TrialRow

if TYPE_CHECKING:
    from optbench.engine import Progress


class View:
    """A receiver of reports from a session; this base class ignores them."""

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None:
        """Report that training begins. path: the directory to which results are written."""

    def progress(self, progress: Progress) -> None:
        """Report the progress of a trial."""

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        """Report that the trials of a cohort have ended and their results are on disk."""

    def message(self, text: str) -> None:
        """Report an event in one line, such as the start of a download."""

    def warning(self, text: str) -> None:
        """Report a warning that readers of the results should know about."""

    def details(self, text: str) -> None:
        """Report the traceback of a failure."""
