"""`optbench run`: a suite becomes trials, trials are trained in cohorts, results become files. The whole story:

    suite -> plan -> workers (engine) -> store

Where the suite asks for `pairs`, the solutions of a seed are compared as soon as all of its trials have ended.

The engine yields results and writes nothing; this is where they are written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from optbench.counting import count
from optbench.errors import StoreError, UsageError
from optbench.execution.messages import Compare, Compared, Failed, Finished, Job, Train
from optbench.execution.pool import Pool
from optbench.execution.preflight import Code, check, find_code, left_of
from optbench.execution.schedule import MOST_ON_CPU, Plan, goes_on, make_plan, spread
from optbench.metrics import METRICS_VERSION, PAIR_METRICS
from optbench.plan import Cohort, PairedSolutions, Trial
from optbench.store import RunWriter
from optbench.store.damaged import set_damaged_aside
from optbench.store.interim import find_begun
from optbench.store.lock import RunLock
from optbench.store.pairs_table import NOT_COMPARED, PairRow
from optbench.store.parts import INTERIM
from optbench.store.plugins import KEY as PLUGINS
from optbench.store.plugins import entries
from optbench.store.provenance import provenance
from optbench.store.read import read_json
from optbench.store.run import RunExists
from optbench.store.tables import Row, TrialRow
from optbench.suite import Suite, dump_suite, suite_hash
from optbench.targets import using

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
    force: bool = False
    """Go on with a run that was begun with another version of torch, on another kind of device, or with other code."""
    suite_folder: Path | None = None
    """Where the suite's files are looked for first: its own folder. None: a run that is resumed from its own suite."""
    command: tuple[str, ...] = ()


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
    def warning(self, text: str) -> None: ...
    def details(self, text: str) -> None: ...


def run(suite: Suite, options: Options, view: View) -> Outcome:
    """Train every trial of `suite` that is not done yet and write what it found.

    Raises:
        OptbenchError: the settings, the device, the data or the run directory do not allow it; nothing was trained,
            or what was trained before the error is kept.
    """
    with Session(options, view) as session:
        session.train(session.begin(suite))
    return session.outcome


class Session:
    """A run directory while it is filled, by this process alone.

    Leaving the `with` block says in `run.json` how the run ended; an interruption ends there.
    """

    def __init__(self, options: Options, view: View) -> None:
        """Takes the run to be resumed, if there is one.

        Raises:
            OptbenchError: there is no such device, or another process has the run.
        """
        # Late, because importing torch takes seconds that `--help` and a wrong suite should not cost.
        from optbench.engine.device import resolve, worker_devices

        self._options, self._view = options, view
        self._device = resolve(options.device)
        devices = worker_devices(options.device, self._device, options.jobs, _cores())
        self._jobs = len(devices)
        self._pool = Pool([str(device) for device in devices])
        self._signals = _Interrupts(self._leave_at_once)
        self._writer: RunWriter | None = None
        self._interrupted = False
        self._lock: RunLock | None = None
        self._code = Code()
        self._exits = contextlib.ExitStack()
        if options.resume is not None:
            self._lock = RunLock(options.resume)

    def __enter__(self) -> Session:
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._interrupted = isinstance(error, KeyboardInterrupt)
        try:
            # What is written now is finished, however long that takes: a second interruption ends it.
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
                    # The first error says more, and what was finished is in the parts all the same.
        finally:
            self._exits.close()
            self._signals.__exit__()
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
        """Make the run directory, or go on with the one to be resumed, where what is damaged is moved aside; what there
        is to train.

        extra: what else a new run's `run.json` says. texts: other files that it has, by name. grown: as for
        `make_plan`.

        Raises:
            OptbenchError: the settings, the code, the data or the run directory do not allow it.
        """
        from optbench.engine.device import accelerators, cpu_capability

        options = self._options
        record = provenance(str(self._device), accelerators(), cpu_capability(), self._jobs)
        if options.resume is not None:
            # A run of another version is refused here, before anything in it is called damaged.
            _check_provenance(options, record)
            for text in set_damaged_aside(options.resume):
                self._view.message(f"damaged: {text}")
        plan = make_plan(suite, options.resume, grown=grown)
        self._code = find_code(plan, options.resume, options.suite_folder, force=options.force)
        self._exits.enter_context(using(self._code.sources))
        self._prepare(plan)
        if options.resume is not None:
            self._writer = RunWriter.resume(
                options.resume, record, options.command, plan.trials, plan.left, plan.begun, self._lock
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
            **({PLUGINS: plugins} if plugins else {}),
            **(extra or {}),
        }
        for path in _places(options, plan.suite):
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
        """The plan of a suite with more trials than the run's own, whose place it takes.

        Raises:
            OptbenchError: as for the first plan.
        """
        plan = make_plan(suite, self.writer.path, grown=True, once_failed=True)
        self._prepare(plan)
        self.writer.grow(dump_suite(plan.suite), suite_hash(plan.suite), plan.trials, plan.left)
        return plan

    def train(self, plan: Plan) -> None:
        """Train what is left of the plan and compare its solutions; everything is durable at the end."""
        pieces = spread(plan, self._jobs, MOST_ON_CPU if self._device.type == "cpu" else None)
        units = [Train(piece, goes_on(piece, plan.begun)) for piece in pieces]
        left = _Comparisons(plan, self.writer)
        job = Job(plan.suite, self._options.data_dir, self.writer.path / INTERIM, self._code.sources)
        self._view.started(plan, self.writer.path, str(self._device), self._jobs)
        for event in self._pool.train(units, job, left.ready, lambda piece: goes_on(piece, find_begun(job.interim))):
            with self._signals.held():
                self._take(event, plan, left)

    def _take(self, event: Progress | Finished | Compared | Failed, plan: Plan, left: _Comparisons) -> None:
        if isinstance(event, Finished):
            rows = _with_checkpoints(event, self.writer, plan.suite)
            self._ended(event.cohort, rows, left)
        elif isinstance(event, Compared):
            self.writer.add_pairs(event.comparison, event.rows)
            self._view.message(_compared(event.comparison))
        elif isinstance(event, Failed):
            self._failed(event, plan.suite, left)
        else:
            self._view.progress(event)

    def _leave_at_once(self) -> NoReturn:
        self._pool.kill()
        text = "optbench: left at once; what was finished is kept"
        if self._writer is not None:
            text += f"; go on with --resume {self._writer.path}"
        os.write(2, f"\n{text}\n".encode())
        os._exit(130)

    def _prepare(self, plan: Plan) -> None:
        """Check whatever can be wrong with settings and data, before anything is trained."""
        check(plan, self._options.data_dir, self._view.message)
        if self._writer is None:  # a setting that tuning adds later fails alone, and the others are kept
            from optbench.engine.constructors import try_constructors

            try_constructors(plan.suite, left_of(plan), self._device, self._options.data_dir, self._view.warning)

    def _ended(self, cohort: Cohort, rows: Sequence[tuple[Trial, Row]], left: _Comparisons) -> None:
        rows = [(trial, self._with_source(trial, row)) for trial, row in rows]
        self.writer.add(cohort, rows)
        left.ended(cohort)
        self._view.finished([(trial, row) for trial, row in rows if isinstance(row, TrialRow)])

    def _with_source(self, trial: Trial, row: Row) -> Row:
        if not isinstance(row, TrialRow):
            return row
        source, note = self._code.of(trial)
        return dataclasses.replace(row, source_hash=source, note="; ".join(filter(None, (row.note, note))) or None)

    def _failed(self, event: Failed, suite: Suite, left: _Comparisons) -> None:
        if event.details:
            self._view.details(event.details)
        if isinstance(event.unit, Compare):
            note = f"{NOT_COMPARED}: {event.error_type}: {event.message}"
            self.writer.add_pairs(event.unit.comparison, _unknown_pairs(event.unit.comparison, suite, note))
            self._view.message(f"{_compared(event.unit.comparison)}: {note}")
        else:
            device = str(self._device)
            cohort = event.unit.cohort
            self._ended(cohort, [(trial, _failed_row(trial, event, device)) for trial in cohort.trials], left)


class _Comparisons:
    """What is left to compare, given out as soon as its trials have ended."""

    def __init__(self, plan: Plan, writer: RunWriter) -> None:
        self._left = list(plan.comparisons)
        self._ended = set(plan.done)
        self._writer = writer

    def ended(self, cohort: Cohort) -> None:
        """Take note of a cohort's end, after it has been written."""
        self._ended |= {trial.id for trial in cohort.trials}

    def ready(self) -> list[Compare]:
        """What can be compared now and was not given out before."""
        ready = [c for c in self._left if all(trial.id in self._ended for trial in c.trials)]
        if not ready:
            return []
        self._left = [c for c in self._left if c not in ready]
        endings = self._writer.endings()
        return [self._work(comparison, endings) for comparison in ready]

    def _work(self, comparison: PairedSolutions, endings: Mapping[str, tuple[str, str | None]]) -> Compare:
        places, missing = {}, {}
        for trial in comparison.trials:
            status, checkpoint = endings[trial.id]
            place = self._writer.path / checkpoint if checkpoint else None
            if place is not None and place.is_file():
                places[trial.id] = place
            else:
                missing[trial.id] = f"{trial.id}: {status if status != 'ok' else 'its final weights are gone'}"
        return Compare(comparison, places, missing)


def _places(options: Options, suite: Suite) -> Iterator[Path]:
    """Yield the requested directory, or else `<suite name>-<UTC time>`, then the same with `-2`, `-3`, ..."""
    if options.name is not None:
        yield options.runs_dir / options.name
        return
    name = f"{suite.name}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    yield options.runs_dir / name
    for number in itertools.count(2):
        yield options.runs_dir / f"{name}-{number}"


def _check_provenance(options: Options, record: Mapping[str, Any]) -> None:
    """Raises UsageError where a run would continue with another version of torch, or on another kind of machine."""
    assert options.resume is not None
    begun = read_json(options.resume)
    before = (begun.get("resumed") or [begun])[-1].get("provenance") or {}
    for name, now, then in (
        ("torch", record.get("torch"), before.get("torch")),
        ("device", _kind(record.get("device")), _kind(before.get("device"))),
        ("CPU instructions", record.get("cpu_capability"), before.get("cpu_capability")),
    ):
        if then is not None and now != then and not options.force:
            raise UsageError(
                f"--resume {options.resume}: that run was made with {name} {then}, and this is {name} {now}: "
                "what is left would not be what it would have been; --force goes on all the same"
            )


def _kind(device: object) -> str | None:
    """`cuda` of `cuda:1`."""
    return device.split(":")[0] if isinstance(device, str) else None


def _cores() -> int:
    """Those that this process may use."""
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


def _compared(comparison: PairedSolutions) -> str:
    counts = Counter(pair.kind for pair in comparison.pairs)
    what = f"{count(counts['pair'], 'pair')} and {count(counts['null'], 'null')} compared"
    return f"{comparison.experiment} {comparison.model} seed {comparison.seed}: {what}"


def _unknown_pairs(comparison: PairedSolutions, suite: Suite, note: str) -> list[PairRow]:
    settings = suite.experiments[comparison.experiment].pairs
    names = (settings.metrics if settings else None) or PAIR_METRICS
    return [PairRow.of(pair, name, None, note) for pair in comparison.pairs for name in names]


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


class _Interrupts:
    """Ctrl-C, and SIGTERM, which batch systems send, end a run: as a KeyboardInterrupt, but never while something is
    written. The second one does not wait.
    """

    def __init__(self, at_once: Callable[[], NoReturn]) -> None:
        self._at_once = at_once
        self._asked = self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup, say
                self._before[number] = signal.signal(number, self._interrupt)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self, *, again: bool = True) -> Iterator[None]:
        """An interruption waits for the end of the block; again: and is raised there."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        # Also what was asked for before: an exception that is raised while Python cleans up an object is lost.
        if self._asked and again:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._at_once()
        self._asked = True
        if not self._held:
            raise KeyboardInterrupt
