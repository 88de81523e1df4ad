"""Watching a run while it trains."""

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
    """What a session tells while it trains; this one shows nothing of it."""

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None:
        """Training begins; the results are written to `path`."""

    def progress(self, progress: Progress) -> None:
        """A trial has advanced."""

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        """The trials of a cohort have ended, and their results are on the disk."""

    def message(self, text: str) -> None:
        """Something worth a line: a download that begins."""

    def warning(self, text: str) -> None:
        """Something that a reader of the results should know."""

    def details(self, text: str) -> None:
        """The traceback of a failure."""
