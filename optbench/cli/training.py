"""`optbench run`: make a plan from the options, train it and print a summary."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optbench.cli.dry_run import show_plan
from optbench.cli.live import QuietView, view_for
from optbench.cli.output import results, say
from optbench.counting import count, kept
from optbench.errors import OptbenchError, StoreError, UsageError
from optbench.execution.schedule import make_plan
from optbench.execution.session import Options, Outcome, run
from optbench.metrics.own import KEY as OWN_METRICS
from optbench.metrics.own import RAISED
from optbench.optimizers.registry import defaults_inside
from optbench.report import run_report, summarise
from optbench.report.formats.terminal import show
from optbench.selection import Choice, check_directory, choose, parse_optimizers, parse_seeds
from optbench.stats.results import read_results
from optbench.store import RunDirectory, find_run, read_run
from optbench.studies import STUDIES
from optbench.suite import Suite, resolve_suite_path
from optbench.suite.placing import placing

DONE, SOME_FAILED, NOTHING_MEASURED, INTERRUPTED = 0, 3, 4, 130
NAMED = 3
"""Maximum number of trials named in a warning; further ones are only counted."""


@dataclass(frozen=True)
class Request:
    """The options of `optbench run` as given, including those shared with `optbench tune`."""

    suite: str | None = None
    device: str = "auto"
    on: str = "local"
    set_on: tuple[str, ...] = ()
    runs_dir: Path = Path("runs")
    name: str | None = None
    seeds: str | None = None
    experiments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    data_dir: Path | None = None
    jobs: int | None = None
    resume: str | None = None
    force: bool = False
    dry_run: bool = False
    quiet: bool = False
    debug: bool = False


def train_suite(request: Request) -> int:
    """Train the requested suite and print the results; return the exit code.

    Raises:
        OptbenchError: the request, suite, device, data or runs directory is invalid.
    """
    resume = find_run(request.resume, request.runs_dir) if request.resume is not None else None
    notes: list[str] = []
    suite, path = _suite(request, resume, notes)
    if not request.quiet:
        _say_defaults(suite)
    with placing(path, request.settings):
        if request.dry_run:
            show_plan(make_plan(suite, resume), options_of(request, resume), notes)
            return DONE
        with watched(request) as view:
            for note in notes:
                view.warning(note)
            outcome = run(suite, options_of(request, resume), view)
    return conclude(outcome, request.quiet)


def _say_defaults(suite: Suite) -> None:
    """Report the default inner optimizers of wrappers, because results with an unintended one would look plausible."""
    for name, its in suite.optimizers.items():
        for place, default in defaults_inside(its.target, its.hyperparameters).items():
            inner = ", ".join(f"{key}: {value}" for key, value in default.items())
            say(f"optbench: optimizers.{name}: no {place} is given; the default is {{{inner}}}")


def options_of(request: Request, resume: Path | None) -> Options:
    """Convert a request to session options. resume: the run to continue."""
    return Options(
        device=request.device,
        on=request.on,
        set_on=request.set_on,
        runs_dir=request.runs_dir,
        name=request.name,
        data_dir=request.data_dir,
        jobs=request.jobs,
        resume=resume,
        force=request.force,
        suite_folder=resolve_suite_path(request.suite).parent if request.suite is not None else None,
        command=("optbench", *sys.argv[1:]),
        leaves=True,
    )


@contextlib.contextmanager
def watched(request: Request) -> Iterator[QuietView]:
    """Yield a view that shows training on standard error.

    If an OptbenchError is raised in the block and finished trials are kept, it is re-raised with the number of these
    trials and the path of the run.
    """
    with view_for(sys.stderr, quiet=request.quiet, debug=request.debug) as view:
        try:
            yield view
        except OptbenchError as error:
            # the run directory itself may have been deleted
            there = view.path is not None and (view.path / "run.json").is_file()
            if not there or view.tracker is None or not view.tracker.done:
                raise
            raise type(error)(*error.args, f"{kept(view.tracker.done)} in {view.path}") from error


def _suite(request: Request, resume: Path | None, notes: list[str]) -> tuple[Suite, Path]:
    """Return the requested suite and its file, and add the remarks on a new run's suite to `notes`."""
    if request.suite is None and resume is None:
        raise UsageError("run: expected a SUITE (a path, or a name from `optbench list suites`), got none")
    check_directory(request.name, resume, force=request.force and request.on == "local")
    if resume is not None:
        for setting in request.settings:
            if re.split(r"[.=]", setting, maxsplit=1)[0] == "claims":
                raise UsageError(f"--set {setting}: a resumed run keeps the claims that it was started with")
    seeds = parse_seeds(request.seeds) if request.seeds is not None else ()
    keep, additions = parse_optimizers(request.optimizers)
    choice = Choice(seeds, request.experiments, keep, additions, request.settings, request.models)
    if request.suite is not None:
        path = resolve_suite_path(request.suite)
        return choose(path, choice, note=notes.append if resume is None else None), path
    assert resume is not None
    path = resume / "suite.yaml"
    return choose(path, choice, resume), path


def conclude(outcome: Outcome, quiet: bool, command: str = "run") -> int:
    """Print a run's results and problems; return the exit code. command: the command that resumes the run."""
    finished = sum(outcome.statuses.values())
    if outcome.interrupted:
        say(f"optbench: interrupted; {kept(finished)}; continue with: {_resume(command, outcome.path)}")
        return INTERRUPTED
    recorded = read_run(outcome.path)
    try:
        with results() as console:
            show(run_report(summarise([read_results(recorded)], STUDIES)), console)
            if not quiet:
                console.print(f"\nResults: {outcome.path}", markup=False, highlight=False, soft_wrap=True)
    except StoreError as error:
        raise StoreError(*error.args, f"{kept(finished)} in {outcome.path}") from error
    trials = recorded.table("trials").select(["trial", "status"]).to_pylist()
    for status in ("diverged", "failed"):
        names = [trial["trial"] for trial in trials if trial["status"] == status]
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            say(f"optbench: warning: {count(len(names), 'trial')} {status}: {', '.join(names[:NAMED])}{more}")
    above = sum(bool(n) for n in recorded.table("trials")["tasks_above_target"].to_pylist())
    if above:
        say(f"optbench: warning: {count(above, 'trial')} ended a task above the target training loss")
    raised = metrics_that_raised(recorded)
    for name, (note, trials_of) in raised.items():
        say(f"optbench: warning: metric {name} {note}: undefined in {count(len(trials_of), 'trial')}")
    if outcome.statuses.get("failed", 0) == finished:
        say("optbench: nothing was measured")
        return NOTHING_MEASURED
    return SOME_FAILED if raised or outcome.statuses.get("failed") else DONE


def metrics_that_raised(recorded: RunDirectory) -> dict[str, tuple[str, set[str]]]:
    """Return the users' metrics that raised exceptions, with the first message and the affected trials of each."""
    found: dict[str, tuple[str, set[str]]] = {}
    if recorded.record.get(OWN_METRICS):
        for row in recorded.table("metrics", "trial", "metric", "note").to_pylist():
            if row["note"] is not None and row["note"].startswith(RAISED):
                found.setdefault(row["metric"], (row["note"], set()))[1].add(row["trial"])
    return found


def _resume(command: str, path: Path) -> str:
    return shlex.join(["optbench", command, "--resume", os.fspath(path)])
