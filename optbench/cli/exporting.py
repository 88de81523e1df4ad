"""`optbench export`: write a run as files for an experiment tracker."""

from __future__ import annotations

from pathlib import Path

from optbench.cli.output import say
from optbench.cli.reporting import html_report
from optbench.counting import count
from optbench.errors import NothingMeasuredError
from optbench.export.folder import REPORT, check_folder, filled
from optbench.export.run_log import RunLog
from optbench.export.trackers import find_writer
from optbench.stats.results import read_results
from optbench.store import find_run, read_run


def export_run(run: str, tracker: str, folder: Path, runs_dir: Path) -> int:
    """Write a run's finished trials and its report as files for a tracker, and print how to view the files.

    Return the exit code.

    Raises:
        UsageError: there is no such tracker, it is not installed, or the folder is not empty.
        StoreError: there is no such run, it cannot be read, or the folder cannot be written.
        NothingMeasuredError: no trial has finished.
    """
    write = find_writer(tracker)
    check_folder(folder)  # first, because drawing takes minutes
    results = read_results(read_run(find_run(run, runs_dir)))
    if not results.rows:
        raise NothingMeasuredError(f"nothing to export: no trial of {results.run.id} has finished")
    page = html_report(results)
    with filled(folder):
        (folder / REPORT).write_text(page, encoding="utf-8")
        command = write(RunLog(results), folder)
    missing, planned = len(results.trials) - len(results.rows), len(results.trials)
    if missing:
        verbs = ("is", "was") if missing == 1 else ("are", "were")
        said = f"{missing} of {count(planned, 'trial')} {verbs[0]} not finished and {verbs[1]} not exported"
        say(f"optbench: warning: {said}")
    say(f"optbench: {folder}: {count(len(results.rows), 'trial')} and {REPORT}; {command}")
    return 0
