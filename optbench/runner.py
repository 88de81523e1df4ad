"""`optbench run`: a suite becomes trials, trials are trained in cohorts, results become files. The whole story:

    suite -> plan -> workers (engine) -> store

The engine yields results and writes nothing; this is where they are written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from optbench.errors import UsageError
from optbench.metrics import METRICS_VERSION
from optbench.optimizers.registry import find
from optbench.plan import Cohort, Trial, cohorts, complete, expected_cost, trials
from optbench.store import RunWriter
from optbench.store.provenance import provenance
from optbench.store.read import done_trials, read_tables
from optbench.store.tables import Row, TrialRow
from optbench.suite import Suite, dump_suite, load_suite, suite_hash
from optbench.workers import Failed, Finished, Job, train_all

if TYPE_CHECKING:
    from optbench.engine import Progress


@dataclass(frozen=True)
class Options:
    """How to run a suite: the command line, typed."""

    device: str = "auto"
    runs_dir: Path = Path("runs")
    name: str | None = None
    data_dir: Path | None = None
    jobs: int | None = None
    resume: Path | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run will train, decided before anything is trained."""

    suite: Suite
    trials: tuple[Trial, ...]
    cohorts: tuple[Cohort, ...]
    """Whole cohorts, before they are spread over processes."""
    done: frozenset[str]
    """Trials that an earlier part of the run has finished."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    path: Path
    statuses: dict[str, int]
    interrupted: bool


class View(Protocol):
    """Whoever wants to see a run while it goes on."""

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None: ...
    def message(self, text: str) -> None: ...
    def details(self, text: str) -> None: ...


def make_plan(suite: Suite, resume: Path | None = None) -> Plan:
    """The trials and cohorts of a suite, and which of them a run to be resumed has done already. Runs no user code."""
    suite = complete(suite)
    all_trials = trials(suite)
    done: set[str] = set()
    if resume is not None:
        recorded = load_suite(resume / "suite.yaml")
        if suite_hash(recorded) != suite_hash(suite):
            raise UsageError(f"--resume {resume}: that run was made from another suite, or other settings of this one")
        done = done_trials(read_tables(resume))
    return Plan(suite, tuple(all_trials), tuple(cohorts(all_trials)), frozenset(done))


def run(suite: Suite, options: Options, view: View) -> Outcome:
    """Train every trial of `suite` that is not done yet and write what it found.

    Raises:
        OptbenchError: the settings, the device, the data or the run directory do not allow it; nothing was trained,
            or what was trained before the error is kept.
    """
    # Late, because importing torch takes seconds that `--help` and a wrong suite should not cost.
    from optbench.data import load
    from optbench.engine.device import accelerators, resolve
    from optbench.optimizers.load import check_arguments
    from optbench.optimizers.make import resolve_spec

    plan = make_plan(suite, options.resume)
    device = resolve(options.device)
    for trial in {(t.experiment, t.optimizer, t.variant): t for t in plan.trials}.values():
        check_arguments(trial.target, trial.hyperparameters)
        resolve_spec(find(trial.target), trial.hyperparameters)
    for experiment in plan.suite.experiments.values():
        load(experiment.dataset, options.data_dir, notify=view.message)

    jobs = options.jobs or _default_jobs(device.type)
    units = spread(plan, jobs)
    record = provenance(str(device), accelerators(), jobs)
    if options.resume is not None:
        writer = RunWriter.resume(options.resume, record, options.command, plan.trials)
    else:
        path = options.runs_dir / (options.name or new_id(plan.suite))
        header = {
            "run": path.name,
            "suite": plan.suite.name,
            "suite_hash": suite_hash(plan.suite),
            "metrics_version": METRICS_VERSION,
            "command": list(options.command),
            "seeds": plan.suite.seeds,
            "provenance": record,
        }
        writer = RunWriter.create(path, dump_suite(plan.suite), header, plan.trials)

    try:
        with _interruptible():
            view.started(plan, writer.path, str(device), jobs)
            for event in train_all(units, Job(plan.suite, str(device), options.data_dir), jobs):
                if isinstance(event, Finished):
                    rows = _with_checkpoints(event, writer, plan.suite)
                    writer.add(event.cohort, rows)
                    view.finished([(trial, row) for trial, row in rows if isinstance(row, TrialRow)])
                elif isinstance(event, Failed):
                    failed = [(trial, _failed_row(trial, event, str(device))) for trial in event.cohort.trials]
                    writer.add(event.cohort, failed)
                    if event.details:
                        view.details(event.details)
                    view.finished(failed)
                else:
                    view.progress(event)
    except KeyboardInterrupt:
        writer.finish("interrupted")
        return Outcome(writer.path, writer.statuses(), interrupted=True)
    except BaseException:
        writer.finish("failed")
        raise
    writer.finish("complete")
    return Outcome(writer.path, writer.statuses(), interrupted=False)


def spread(plan: Plan, jobs: int) -> list[Cohort]:
    """What is left of every cohort, cut so that all processes have work; the longest first, so that none ends late."""
    units: list[tuple[float, Cohort]] = []
    for cohort in plan.cohorts:
        left = tuple(trial for trial in cohort.trials if trial.id not in plan.done)
        pieces = dataclasses.replace(cohort, trials=left).split(jobs) if left else []
        experiment = plan.suite.experiments[cohort.experiment]
        units += [(sum(expected_cost(trial, experiment) for trial in piece.trials), piece) for piece in pieces]
    return [unit for _, unit in sorted(units, key=lambda pair: -pair[0])]


def new_id(suite: Suite) -> str:
    """`<suite name>-<UTC time>`."""
    return f"{suite.name}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"


def _default_jobs(device_type: str) -> int:
    """All cores on a CPU; one process per accelerator."""
    import os

    if device_type != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _with_checkpoints(event: Finished, writer: RunWriter, suite: Suite) -> list[tuple[Trial, Row]]:
    """The rows of a finished cohort, after its weights have been written and their places noted."""
    places: dict[str, str] = {}
    if suite.experiments[event.cohort.experiment].checkpoints:
        places = {trial.id: writer.checkpoint(trial, weights) for trial, weights in event.weights}
    return [
        (trial, dataclasses.replace(row, checkpoint=places.get(trial.id)) if isinstance(row, TrialRow) else row)
        for trial, row in event.rows
    ]


def _failed_row(trial: Trial, failure: Failed, device: str) -> TrialRow:
    return TrialRow(
        status="failed",
        error_type=failure.error_type,
        error_message=failure.message,
        last_step=0,
        steps=0,
        parameters=0,
        device=device,
        hyperparameters=json.dumps(dict(trial.hyperparameters)),
        init_hash="",
        train_seconds=0.0,
        optimizer_seconds=0.0,
        optimizer_state_bytes=0,
        checkpoint=None,
        fallbacks=0,
        note=None,
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, which batch systems send, ends a run as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
