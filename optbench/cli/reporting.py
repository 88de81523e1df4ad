"""`optbench report`: the tables of runs that are on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optbench.cli.output import results
from optbench.errors import NothingMeasuredError
from optbench.report import render, summarise
from optbench.store import find_run, read_run


def report_runs(names: Sequence[str], runs_dir: Path) -> None:
    """Print the tables of the runs, one after the other.

    Raises:
        StoreError: there is no such run, or it cannot be read.
        NothingMeasuredError: none of the runs has a trial that ended, well or diverged.
    """
    summaries = [summarise(read_run(find_run(name, runs_dir))) for name in names]
    with results() as console:
        for i, summary in enumerate(summaries):
            if i:
                console.print()
            render(summary, console)
    if not any(summary.statuses.get(status) for summary in summaries for status in ("ok", "diverged")):
        raise NothingMeasuredError(f"nothing was measured in {', '.join(summary.run for summary in summaries)}")
