"""Summaries of runs over seeds: typed values for every report format.

Diverged and failed trials are excluded from means but counted next to them.

Legend: `T` tasks; an accuracy matrix has shape (T+1, T), and its row 0 precedes any training.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optbench.counting import count, grouped
from optbench.metrics import Metric
from optbench.metrics.score import score_word
from optbench.report.measures import MEASURES, TITLES, Measure, named_measure, score_measure
from optbench.report.recipe import recipe
from optbench.report.spread import Spread
from optbench.report.study import Study
from optbench.stats.arms import Arm, arms
from optbench.stats.claims import JudgedClaim
from optbench.stats.learning import without_learning
from optbench.stats.power import corrected_for, shortage_text, suite_shortages
from optbench.stats.results import Results, SplitName
from optbench.store.values import Matrix
from optbench.suite.protocol import Protocol
from optbench.suite.schema import Stage
from optbench.suite.scoring import scoring


@dataclass(frozen=True)
class SummaryRow:
    """One optimizer setting on one experiment and model, over its seeds."""

    arm: Arm
    values: Mapping[str, Spread | None]
    """The spread of every measured metric over the trials that are ok, by name; None if undefined."""
    matrix: Matrix | None
    """The mean accuracy matrix (T+1, T) of the trials that are ok."""
    fallbacks: int
    """Number of matrix factorisations that failed, over all trials."""
    notes: Mapping[str, int]
    """The number of trials with each note, without notes on failed factorisations and on tasks not learnt."""
    bounds: Mapping[tuple[str, str], int]
    """The number of trials that are ok and whose value is only a lower bound, by metric and remark."""

    @property
    def run(self) -> str:
        return self.arm.results.run.id

    @property
    def label(self) -> str:
        return self.arm.label

    @property
    def split(self) -> SplitName:
        """The split on which accuracies are measured."""
        return self.arm.results.split


@dataclass(frozen=True)
class Section:
    """The results of one experiment and model, with one row per optimizer setting and run, in suite order."""

    experiment: str
    model: str
    stopping: tuple[str, ...]
    """Sentences on the protocol (when a task ends, settings beyond plain training, scoring); one text per run if the
    runs differ."""
    measures: tuple[Measure, ...]
    """The columns of the tables, except those in `undefined`."""
    undefined: Mapping[str, tuple[Measure, ...]]
    """The measures that are undefined in every trial that is ok, by reason."""
    metrics: Mapping[str, Metric]
    """Every measured metric, by name."""
    rows: tuple[SummaryRow, ...]

    @property
    def in_bits(self) -> bool:
        """Whether the experiment is on text, for which matrices hold negative bits per byte."""
        return any(row.arm.in_bits for row in self.rows)

    @property
    def score(self) -> str:
        """The name of the scores that the matrices hold."""
        return score_word(self.in_bits)

    @property
    def ends(self) -> tuple[float, float]:
        """The scale for scores: from 0 to 1 or, for text, between the nearest whole numbers that enclose all scores."""
        if not self.in_bits:
            return 0.0, 1.0
        values = np.concatenate([row.matrix.ravel() for row in self.rows if row.matrix is not None] or [np.zeros(1)])
        low, high = np.nanmin(values), np.nanmax(values)
        return float(np.floor(low)), float(max(np.ceil(high), np.floor(low) + 1))


@dataclass(frozen=True)
class Trouble:
    """A trial that diverged or failed."""

    run: str
    trial: str
    status: str
    reason: str


@dataclass(frozen=True)
class RunSummary:
    """A run's provenance, the command that repeats it, its trials by status, its claims and the results of studies."""

    run: str
    suite: str
    suite_hash: str
    description: str
    stage: Stage
    status: str
    created: str
    finished: str
    command: str
    repeat: str
    """The command that repeats the run."""
    merged: tuple[str, ...]
    """The runs that `optbench merge` combined into this run, each with its number of seeds."""
    device: str
    machine: str
    versions: str
    commit: str
    seeds: tuple[int, ...]
    planned: int
    statuses: Mapping[str, int]
    """Number of finished trials by status, as in `Results.status`."""
    controls: int
    """Number of trials planned with a different data order, for the null of pairs of solutions; not in `planned`."""
    controls_ended: int
    too_few_seeds: str | None
    """A sentence on the tests that have too few seeds; None if all tests have enough."""
    claims: tuple[JudgedClaim, ...]
    studied: Mapping[str, Sequence[Any]]
    """The results of each study, by name."""
    provenance: tuple[str, ...]
    """Sentences from the studies on how the settings of the run were chosen."""

    @property
    def ended(self) -> int:
        """Number of finished trials, with any outcome."""
        return sum(self.statuses.values())


@dataclass(frozen=True)
class Summary:
    """The summary of one run, or of several runs side by side."""

    runs: tuple[RunSummary, ...]
    sections: tuple[Section, ...]
    troubles: tuple[Trouble, ...]
    studies: tuple[Study[Any], ...]

    @property
    def remarks(self) -> list[tuple[Section, SummaryRow, str]]:
        """Caveats about means, each with its section and row."""
        rows = ((section, row) for section in self.sections for row in section.rows)
        return [(section, row, said) for section, row in rows if (said := row.arm.mixed_code)]

    @property
    def measured(self) -> bool:
        """Whether any trial finished without failing."""
        return any(run.statuses.get(status) for run in self.runs for status in ("ok", "above_target", "diverged"))


def summarise(results: Sequence[Results], studies: Sequence[Study[Any]]) -> Summary:
    """Summarise runs across their seeds, by experiment and model, and apply each study."""
    places = grouped(((arm.experiment, arm.model), arm) for run in results for arm in arms(run))
    return Summary(
        runs=tuple(run_summary(run, studies) for run in results),
        sections=tuple(_section(*place, found) for place, found in places.items()),
        troubles=tuple(trouble for run in results for trouble in _troubles(run)),
        studies=tuple(studies),
    )


def _section(experiment: str, model: str, found: Sequence[Arm]) -> Section:
    known = {name: metric for arm in reversed(found) for name, metric in arm.metrics.items()}
    metrics = {name: metric for name, metric in known.items() if any(arm.took(name) for arm in found)}
    # Metrics measured only for readings of claims would widen every table.
    left_out = frozenset.intersection(*(arm.results.unlisted[arm.experiment] for arm in found))
    shown = {name: metric for name, metric in metrics.items() if name not in left_out}
    measures = [m for m in MEASURES if m.name in shown and any(_applies(m, arm) for arm in found)]
    if any(arm.in_bits for arm in found):
        measures = [score_measure(measure, known[measure.name]) for measure in measures]
    asked = {name for arm in found for name in _asked(arm)}
    measures += [
        named_measure(metric)
        for metric in shown.values()
        if not metric.is_size and (metric.target or (metric.name in asked - TITLES.keys() and metric.scope is None))
    ]
    sentences = {arm.results.run.id: _said(arm) for arm in found}
    undefined = _undefined(measures, found)
    missing = {measure.name for group in undefined.values() for measure in group}
    measures = [measure for measure in measures if measure.name not in missing]
    same = len(set(sentences.values())) == 1
    said = tuple(sentences.values())[:1] if same else tuple(f"{run}: {text}" for run, text in sentences.items())
    rows = tuple(_row(arm, metrics) for arm in found)
    return Section(experiment, model, said, tuple(measures), undefined, metrics, rows)


def _asked(arm: Arm) -> Iterator[str]:
    """Yield the metrics that always have a column: the experiment's primary metrics and the metrics of its claims."""
    yield from arm.settings.primary or ()
    for claim in arm.results.suite.claims.values():
        if claim.experiment == arm.experiment:
            yield from (claim.primary.name, *claim.beside, *claim.where)


def _undefined(measures: Sequence[Measure], found: Sequence[Arm]) -> dict[str, tuple[Measure, ...]]:
    """Return the columns that are undefined in every `ok` trial for a single reason, grouped by that reason."""
    trials = [(arm, trial.id) for arm in found for seed, trial in arm.trials.items() if arm.status(seed) == "ok"]
    groups: dict[str, list[Measure]] = {}
    for measure in measures:
        if not trials or any(math.isfinite(value) for arm in found for value in arm.values(measure.name)):
            continue
        reasons = {arm.results.undefined(measure.name, trial) for arm, trial in trials}
        if len(reasons) == 1 and (reason := reasons.pop()):
            groups.setdefault(reason, []).append(measure)
    return {reason: tuple(group) for reason, group in groups.items()}


def _applies(measure: Measure, arm: Arm) -> bool:
    tasks = arm.tasks
    if arm.in_bits and measure.metric.kind == "similarity":
        return False  # tokens are not classes
    if measure.metric.note_arguments.get("over_pairs") and tasks.count == 1:
        return False  # with a single task, nothing can be forgotten
    return not measure.groups_only or tasks.disjoint


def _row(arm: Arm, metrics: Iterable[str]) -> SummaryRow:
    good = [trial.id for seed, trial in arm.trials.items() if arm.status(seed) == "ok"]
    matrices = [arm.results.matrices[trial] for trial in good if trial in arm.results.matrices]
    rows = [arm.results.rows[trial.id] for trial in arm.trials.values() if trial.id in arm.results.rows]
    return SummaryRow(
        arm=arm,
        values={name: Spread.of(arm.values(name)) for name in metrics},
        matrix=np.mean(matrices, axis=0) if matrices else None,
        fallbacks=sum(row.fallbacks for row in rows),
        notes=Counter(note for row in rows if not row.fallbacks and (note := without_learning(row.note or ""))),
        bounds=Counter(
            (name, of[trial]) for name, of in arm.results.lower_bounds.items() for trial in good if trial in of
        ),
    )


def _said(arm: Arm) -> str:
    protocol = arm.settings.protocol
    said = stopping(protocol), recipe(protocol), scoring(protocol.score, arm.tasks.count)
    return " ".join(sentence for sentence in said if sentence)


def stopping(protocol: Protocol) -> str:
    """Return a sentence on how long each task is trained and what ends its training early."""
    bound = count(protocol.max_epochs, "epoch")
    if protocol.max_steps is not None:
        bound += f" or {count(protocol.max_steps, 'step')}"
    if protocol.early_stopping is None:
        return f"No early stopping: {bound} a task."
    early = protocol.early_stopping
    if early.target is not None:
        return f"A task ends at the first training loss of {early.target:g} or less, after at most {bound}."
    split = "test" if early.on == "test" else "validation"
    return f"Early stopping on {split} loss, patience {early.patience}, at most {bound} a task."


def _troubles(results: Results) -> Iterable[Trouble]:
    rows = {**results.rows, **results.control_rows}
    for trial in (*results.trials, *results.controls):
        row = rows.get(trial.id)
        if row is None or row.status == "ok":
            continue
        if row.status == "diverged":
            reason = f"at step {row.last_step}"
        else:
            reason = ": ".join(part for part in (row.error_type, row.error_message) if part) or "no reason recorded"
        yield Trouble(results.run.id, trial.id, row.status, reason)


def run_summary(results: Results, studies: Sequence[Study[Any]] = ()) -> RunSummary:
    """Summarise a run: its provenance, judged claims and the results of each study."""
    record, suite = results.run.record, results.suite
    provenance = _mapping(record.get("provenance"))
    git = _mapping(provenance.get("git"))
    devices = ", ".join(str(name) for name in provenance.get("accelerators") or ())
    command = record.get("command")
    claims = tuple(results.claims)
    return RunSummary(
        run=results.run.id,
        suite=suite.name,
        suite_hash=str(record.get("suite_hash", "")),
        description=" ".join(suite.description.split()),
        stage=suite.stage,
        status=str(record.get("status")),
        created=str(record.get("created") or ""),
        finished=str(record.get("finished") or ""),
        command=_command(command) if isinstance(command, list) else "",
        repeat=shlex.join(["optbench", "run", str(results.run.path / "suite.yaml")]),
        merged=tuple(
            f"{_text(part, 'run')} ({count(len(part.get('seeds', ())), 'seed')})" for part in record.get("merged") or ()
        ),
        device=str(provenance.get("device", "")),
        machine=", ".join(
            part for part in (_text(provenance, "cpu"), f"{_text(provenance, 'cores')} cores", devices) if part.strip()
        ),
        versions=", ".join(f"{name} {_text(provenance, name)}" for name in ("optbench", "python", "torch")),
        commit=f"{_text(git, 'commit')[:12]}{' with changes' if git.get('dirty') else ''}" if git else "",
        seeds=tuple(suite.seeds),
        planned=len(results.trials),
        statuses=Counter(map(results.status, results.rows)),
        controls=len(results.controls),
        controls_ended=len(results.control_rows),
        too_few_seeds=_too_few_seeds(results, claims),
        claims=claims,
        studied={study.name: study.find(results) for study in studies},
        provenance=tuple(line for study in studies if study.provenance for line in study.provenance(results)),
    )


def _command(words: Sequence[object]) -> str:
    """Quote a command for a shell. A call from Python is recorded as a single word and returned unchanged."""
    return shlex.join(map(str, words)) if len(words) > 1 else "".join(map(str, words))


def _too_few_seeds(results: Results, claims: Sequence[JudgedClaim]) -> str | None:
    """Return a sentence on the run's tests that have too few seeds, given the claims; None if all have enough."""
    found = suite_shortages(results.suite, results.trials, [corrected_for(c.claim, len(c.parts)) for c in claims])
    return shortage_text(found) if found else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(mapping: Mapping[str, Any], key: str) -> str:
    value = mapping.get(key)
    return "?" if value is None else str(value)
