"""A session of `optbench run`, which plans the trials of a suite, trains them in cohorts, and writes the results.

    suite -> plan -> workers (engine) -> store

If the suite requests `pairs`, the solutions of a seed are compared as soon as the trials to compare have ended.

The engine returns results without writing them; this module writes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from optbench.counting import count
from optbench.data.loading import keeping_last, load
from optbench.errors import StoreError
from optbench.execution.backends import Place, open_backend
from optbench.execution.comparisons import Comparisons, comparison_name, unknown_pairs
from optbench.execution.directory import check_provenance, places
from optbench.execution.interrupts import Interrupts
from optbench.execution.messages import Arrived, Compare, Compared, Failed, Finished, Job, Said, Train, Unit
from optbench.execution.nursery import early
from optbench.execution.pool import Pool
from optbench.execution.preflight import Code, check, find_code, left_of
from optbench.execution.schedule import MOST_ON_CPU, Plan, goes_on, make_plan, spread
from optbench.execution.sizes import Pace, Sizes
from optbench.execution.view import View
from optbench.metrics import METRICS_VERSION
from optbench.metrics.own import KEY as METRICS
from optbench.metrics.own import metric_record, resolve
from optbench.plan import Cohort, Trial
from optbench.store import RunWriter
from optbench.store.damaged import set_damaged_aside
from optbench.store.interim import Begun, find_begun, write_arrived
from optbench.store.lock import RunLock
from optbench.store.pairs_table import NOT_COMPARED
from optbench.store.parts import INTERIM
from optbench.store.plugins import KEY as PLUGINS
from optbench.store.plugins import entries
from optbench.store.provenance import provenance
from optbench.store.run import RunExists
from optbench.store.tables import Row, TrialRow
from optbench.suite import Suite, dump_suite, suite_hash
from optbench.suite.measured import with_readings
from optbench.targets import using

if TYPE_CHECKING:
    from optbench.execution.pool import Passed


@dataclass(frozen=True)
class Options:
    """The options of a run."""

    device: str = "auto"
    runs_dir: Path = Path("runs")
    name: str | None = None
    data_dir: Path | None = None
    jobs: int | None = None
    resume: Path | None = None
    force: bool = False
    """True to resume a run even with another version of torch, on another kind of device, or with changed code, and to
    accept cluster workers whose versions differ."""
    suite_folder: Path | None = None
    """The folder of the suite, in which users' files are looked up first; None if a run is resumed from its own
    suite."""
    command: tuple[str, ...] = ()
    leaves: bool = False
    """True if a second interrupt ends the process immediately, for the command line; False if it only kills the
    workers, for calls from Python."""
    on: str = "local"
    """Where workers run: `local`, `ray`, `ray:HOST:PORT` or `slurm`."""
    set_on: tuple[str, ...] = ()
    """Settings of the backend, such as `partition=gpu`."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run. statuses: the number of finished trials by status."""

    path: Path
    statuses: dict[str, int]
    interrupted: bool


def _own_metrics(suite: Suite) -> list[dict[str, Any]]:
    """Return the records of the users' metrics, which are not in the catalog."""
    measured = with_readings(suite).experiments.values()
    named = [entry for experiment in measured for entry in experiment.own_metrics.values()]
    return [metric_record(metric) for metric in resolve(named)]


def run(suite: Suite, options: Options, view: View | None = None) -> Outcome:
    """Train all remaining trials of `suite` and write their results.

    Raises:
        OptbenchError: the settings, the device, the data or the run directory are unsuitable. Results written before
            the error are kept.
    """
    with (
        early(options.device, wanted=Place.parse(options.on, options.set_on).is_local),
        Session(options, view or View()) as session,
    ):
        session.train(session.begin(suite))
    return session.outcome


class Session:
    """A run in progress, whose directory is written only by this process.

    At the end of the `with` block, the final status is written to `run.json`, and a KeyboardInterrupt is suppressed.
    """

    def __init__(self, options: Options, view: View) -> None:
        """Open the backend, and lock the run to be resumed, if any.

        Raises:
            OptbenchError: the device or backend is unavailable, or another process has locked the run.
        """
        # Imported late, because this takes seconds, and `--help` and invalid suites must not have to wait for it.
        import torch

        self._options, self._view = options, view
        self._place = Place.parse(options.on, options.set_on)
        self._place.check_device(options.device)
        self._signals = Interrupts(self._interrupted_again)
        self._writer: RunWriter | None = None
        self._interrupted = False
        self._code = Code()
        self._pace = Pace()
        self._exits = contextlib.ExitStack()
        backend = open_backend(self._place, options.device, options.jobs, options.runs_dir, force=options.force)
        try:
            self._lock = RunLock(options.resume) if options.resume is not None else None
        except BaseException:
            backend.close()
            raise
        self._device, self._jobs = torch.device(backend.device), backend.jobs
        self._pool = Pool(backend)

    def __enter__(self) -> Session:
        self._exits.enter_context(self._signals)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._interrupted = isinstance(error, KeyboardInterrupt)
        try:
            # Finish writing, even if this takes long.
            with self._signals.held(again=False):
                self._pool.close()
                if self._writer is None:
                    if self._lock is not None:
                        self._lock.release()
                    return False
                try:
                    self._writer.finish("interrupted" if self._interrupted else "failed" if error else "complete")
                except StoreError:
                    if error is None or self._interrupted:
                        raise
                    # The first error is more informative, and finished results are already in the parts.
        finally:
            self._exits.close()
        return self._interrupted

    @property
    def writer(self) -> RunWriter:
        assert self._writer is not None, "begin comes first"
        return self._writer

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.writer.path, self.writer.statuses(), self._interrupted)

    def begin(
        self,
        suite: Suite,
        extra: Mapping[str, Any] | None = None,
        texts: Mapping[str, str] | None = None,
        *,
        grown: bool = False,
    ) -> Plan:
        """Create the run directory, or resume an existing run after moving damaged files aside; return the plan.

        extra: additional fields of `run.json`. texts: additional files of a new run, by name. grown: as for
        `make_plan`.

        Raises:
            OptbenchError: the settings, the code, the data or the run directory are unsuitable.
        """
        from optbench.engine.device import accelerators, cpu_capability

        options = self._options
        record = provenance(str(self._device), accelerators(), cpu_capability(), self._jobs)
        if not self._place.is_local:
            record["on"] = options.on
        if options.resume is not None:
            # A run made with another version is rejected here, before any of its files is considered damaged.
            if not options.force:
                check_provenance(options.resume, record)
            for text in set_damaged_aside(options.resume):
                self._view.message(f"damaged: {text}")
        plan = make_plan(suite, options.resume, grown=grown)
        self._code = find_code(plan, options.resume, options.suite_folder, force=options.force)
        self._exits.enter_context(using(self._code.sources))
        plan = self._prepare(plan)
        if options.resume is not None:
            self._writer = RunWriter.resume(
                options.resume, record, options.command, plan.trials, plan.left, plan.begun, self._lock, extra
            )
            if self._code.unrecorded:
                before = self._writer.plugins or [{}]
                self._writer.add_plugins(*entries(self._code.unrecorded, before))
            if begun := sum(trial in plan.begun for trial in plan.left):
                self._view.message(f"continuing {count(begun, 'trial')} from the end of the last finished task")
            return plan
        plugins, copies = entries(self._code.sources)
        header = {
            "suite": plan.suite.name,
            "suite_hash": suite_hash(plan.suite),
            "metrics_version": METRICS_VERSION,
            "command": list(options.command),
            "seeds": plan.suite.seeds,
            "provenance": record,
            "experiments": {name: {"tasks": dataclasses.asdict(tasks)} for name, tasks in plan.outlines.items()},
            **({PLUGINS: plugins} if plugins else {}),
            **({METRICS: described} if (described := _own_metrics(plan.suite)) else {}),
            **(extra or {}),
        }
        for path in places(options.runs_dir, options.name, plan.suite.name):
            try:
                self._writer = RunWriter.create(
                    path, dump_suite(plan.suite), header, plan.trials, {**(texts or {}), **copies}
                )
                break
            except RunExists:
                if options.name is not None:
                    raise
        return plan

    def grow(self, suite: Suite) -> Plan:
        """Replace the run's suite with one that has more trials; return the new plan. Raises the errors of `begin`."""
        plan = make_plan(suite, self.writer.path, grown=True, once_failed=True)
        plan = self._prepare(plan)
        self.writer.grow(dump_suite(plan.suite), suite_hash(plan.suite), plan.trials, plan.left)
        return plan

    def train(self, plan: Plan) -> None:
        """Train the remaining trials of the plan and compare solutions; all results are on disk at the end."""
        pieces = spread(plan, self._jobs, MOST_ON_CPU if self._device.type == "cpu" else None)
        units = [Train(piece, goes_on(piece, plan.begun)) for piece in pieces]
        sizes = Sizes(plan, units, self._jobs, self._pace)
        left = Comparisons(plan, self.writer)
        job = Job(with_readings(plan.suite), self._options.data_dir, self.writer.path / INTERIM, self._code.sources)
        self._view.started(plan, self.writer.path, str(self._device), self._jobs)
        held = self._signals.held

        def begun(piece: Cohort) -> Mapping[str, Begun]:
            return goes_on(piece, find_begun(job.interim))

        # On an accelerator, the pieces are as large as possible from the start.
        take = sizes.take if self._device.type == "cpu" else list[Unit].pop
        for event in self._pool.train(units, job, left.ready, begun, held, take):
            if isinstance(event, Finished):
                sizes.finished(event)
            with held():
                self._take(event, plan, left)

    def _take(self, event: Passed, plan: Plan, left: Comparisons) -> None:
        if isinstance(event, Finished):
            weights = event.weights if plan.suite.experiments[event.cohort.experiment].checkpoints else ()
            places = {trial.id: self.writer.checkpoint(trial, found) for trial, found in weights}
            self._ended(event.cohort, event.rows, places)
            left.ended(event.cohort)
        elif isinstance(event, Compared):
            self.writer.add_pairs(event.comparison, event.rows)
            self._view.message(f"{comparison_name(event.comparison)} compared")
        elif isinstance(event, Failed):
            self._failed(event, plan.suite, left)
        elif isinstance(event, Arrived):
            write_arrived(self.writer.path / INTERIM, event.name, event.files)
        elif isinstance(event, Said):
            self._view.message(event.text)
        else:
            self._view.progress(event)

    def _interrupted_again(self) -> None:
        self._pool.kill()
        if not self._options.leaves:
            return
        text = "optbench: ended immediately; finished results are kept"
        if self._writer is not None:
            text += f"; continue with --resume {self._writer.path}"
        os.write(2, f"\n{text}\n".encode())
        os._exit(130)

    def _prepare(self, plan: Plan) -> Plan:
        """Check settings and data before training; return the plan with the outlines of its tasks."""
        load_once = keeping_last(functools.partial(load, data_dir=self._options.data_dir, notify=self._view.message))
        plan = dataclasses.replace(plan, outlines=check(plan, load_once))
        if self._writer is None:  # trials that tuning adds later fail individually, without ending the run
            import torch

            from optbench.engine.constructors import try_constructors
            from optbench.engine.uncompiled import made_without_dynamo

            with made_without_dynamo():
                # This machine may not have the devices of the cluster.
                device = self._device if self._place.is_local else torch.device("cpu")
                try_constructors(plan.suite, left_of(plan), device, load_once, self._view.warning)
        return plan

    def _ended(self, cohort: Cohort, rows: Sequence[tuple[Trial, Row]], checkpoints: Mapping[str, str]) -> None:
        """Write a cohort's rows, with source hashes and notes. checkpoints: the paths of final weights, by trial id."""
        complete: list[tuple[Trial, Row]] = []
        for trial, row in rows:
            if isinstance(row, TrialRow):
                source, note = self._code.of(trial)
                notes = "; ".join(filter(None, (row.note, note))) or None
                row = dataclasses.replace(row, checkpoint=checkpoints.get(trial.id), source_hash=source, note=notes)
            complete.append((trial, row))
        self.writer.add(cohort, complete)
        self._view.finished([(trial, row) for trial, row in complete if isinstance(row, TrialRow)])

    def _failed(self, event: Failed, suite: Suite, left: Comparisons) -> None:
        if event.details:
            self._view.details(event.details)
        if isinstance(event.unit, Compare):
            note = f"{NOT_COMPARED}: {event.error_type}: {event.message}"
            self.writer.add_pairs(event.unit.comparison, unknown_pairs(event.unit.comparison, suite, note))
            self._view.message(f"{comparison_name(event.unit.comparison)}: {note}")
        else:
            device = str(self._device)
            cohort = event.unit.cohort
            self._ended(cohort, [(trial, _failed_row(trial, event, device)) for trial in cohort.trials], {})
            left.ended(cohort)


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
