"""The results of a run as numbers per trial, for reports to summarise and for comparisons to pair.

Legend: `T` tasks; an accuracy matrix has shape (T+1, T), row 0 before any training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from optbench.errors import StoreError
from optbench.metrics import Metric
from optbench.metrics.catalog import companions
from optbench.metrics.learning import NotLearnt, start_losses
from optbench.metrics.own import metrics_of
from optbench.metrics.score import metric_in_bits
from optbench.optimizers.registry import check_names
from optbench.plan import Trial, outline, trials
from optbench.stats.learning import Held, not_learnt, right_after
from optbench.store import RunDirectory
from optbench.store.columns import codes, numbers
from optbench.store.online import ACCURACY, Online
from optbench.store.pairs_table import PairValue, pair_values
from optbench.store.tables import TrialRow
from optbench.store.values import (
    FINAL_COLUMNS,
    Matrix,
    Values,
    accuracy_column,
    accuracy_matrices,
    continual_values,
    final_metrics,
    in_bits,
    lower_bounds,
    pruning_curves,
    score_columns,
    score_matrices,
    trial_values,
    undefined,
)
from optbench.suite import Suite, load_suite
from optbench.suite.measured import unlisted
from optbench.suite.protocol import Protocol
from optbench.suite.scoring import Rule, scored_tasks
from optbench.tasks import Outline

if TYPE_CHECKING:
    from optbench.stats.claims import JudgedClaim

SplitName = Literal["test", "validation"]


@dataclass(frozen=True)
class TrialValue:
    """The final value of one metric in one trial; NaN if undefined. Diverged trials have only cost values."""

    trial: Trial
    status: str
    metric: str
    value: float


@dataclass(frozen=True)
class Results:
    """One run, its suite, and the results of its trials."""

    run: RunDirectory
    suite: Suite
    trials: tuple[Trial, ...]
    """All planned trials, in the suite's order, except controls, which are not part of any arm."""
    rows: Mapping[str, TrialRow]
    """The outcome and cost of each finished trial, by trial id, except controls."""
    controls: tuple[Trial, ...] = ()
    """Trials planned with a different data order, used only for the null distribution of pairs of solutions."""
    control_rows: Mapping[str, TrialRow] = field(default_factory=dict)
    """Like `rows`, but for controls."""

    @property
    def split(self) -> SplitName:
        """The split whose accuracies are reported: validation in a tuning run, which must not use test data."""
        return "validation" if self.suite.stage == "tune" else "test"

    @functools.cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """Every metric by name: those of the catalog, and the user's metrics from the run's record."""
        return metrics_of(self.run.record)

    @functools.cached_property
    def outlines(self) -> dict[str, Outline]:
        """The tasks of each experiment, from the run's record or, for runs of earlier versions, from its suite."""
        recorded = self.run.record.get("experiments") or {}
        return {
            name: Outline.from_record(recorded[name]["tasks"]) if name in recorded else outline(experiment)
            for name, experiment in self.suite.experiments.items()
        }

    @functools.cached_property
    def matrices(self) -> dict[str, Matrix]:
        """The accuracy matrix R (T+1, T) of every trial that has one, on the data of `split`; NaN after divergence.

        The entries are accuracies or, for text, negative bits per byte.
        """
        column = accuracy_column([self.suite.stage])
        table = self.run.table("accuracy", *dict.fromkeys(score_columns(column)))
        experiments = {trial.id: trial.experiment for trial in (*self.trials, *self.controls)}
        tasks = {name: outline.count for name, outline in self.outlines.items()}
        place = self.run.path / "accuracy.parquet"
        counts = {trial: tasks[experiment] for trial, experiment in experiments.items()}
        protocols = {trial: self.suite.experiments[name].protocol for trial, name in experiments.items()}
        check_matrices(place, table, counts, protocols)
        return score_matrices(table, column)

    @functools.cached_property
    def in_bits(self) -> frozenset[str]:
        """The experiments on text, for which R holds negative bits per byte."""
        text = in_bits(self.run.table("accuracy", "trial", "bits_per_byte"))
        return frozenset(trial.experiment for trial in (*self.trials, *self.controls) if trial.id in text)

    @functools.cached_property
    def claims(self) -> list[JudgedClaim]:
        """Every claim of the suite, judged only once; tables and figures share the result."""
        from optbench.stats.claims import judge_claims  # not at the top, because that module imports this one

        return judge_claims(self)

    def metrics_of(self, experiment: str) -> Mapping[str, Metric]:
        """Return `metrics` with the units of an experiment: for text, continual metrics are in bits per byte."""
        if experiment not in self.in_bits:
            return self.metrics
        return {name: metric_in_bits(metric) for name, metric in self.metrics.items()}

    @functools.cached_property
    def validation(self) -> Values:
        """The continual metrics of every trial on validation data, regardless of `split`."""
        table = self.run.table("accuracy", *score_columns("validation_accuracy"))
        return continual_values(score_matrices(table, "validation_accuracy"))

    @functools.cached_property
    def pruning(self) -> dict[tuple[str, str], Matrix]:
        """The pruning curve after the last task, (K, 2), by trial and scope.

        The columns are the fraction of weights kept, ascending, and the accuracy.
        """
        table = self.run.table("pruning", "trial", "after_task", "scope", "keep", "accuracy")
        return pruning_curves(table, self.matrices)

    @functools.cached_property
    def online(self) -> Online:
        """The online accuracies of every trial that recorded them."""
        table = self.run.table("online", "trial", "task", ACCURACY)
        if not table.num_rows:
            return Online()  # Arrow would import pandas to convert a column without chunks
        planned = (*self.trials, *self.controls)
        tasks = {trial.id: self.outlines[trial.experiment].count for trial in planned}
        good = {trial for trial, row in {**self.rows, **self.control_rows}.items() if row.status == "ok"}
        check_online(self.run.path / "online.parquet", table, tasks, good)
        return Online.of(table, tasks, good, planned)

    @functools.cached_property
    def lower_bounds(self) -> dict[str, dict[str, str]]:
        """A remark on each value that is only a lower bound (e.g. of the steps to an accuracy), by metric and trial."""
        return lower_bounds(self.run.table("metrics", "trial", "metric", "value", "note"))

    def undefined(self, metric: str, trial: str) -> str | None:
        """Return why a metric derived from accuracies is undefined for a trial with status `ok`; None if unknown."""
        return undefined(self.metrics.get(metric), trial, self.matrices, self.online)

    @functools.cached_property
    def values(self) -> Values:
        """The values of metrics in finished trials other than controls, by metric and trial id."""
        return {name: {t: v for t, v in of.items() if t in self.rows} for name, of in self.every_value.items()}

    @functools.cached_property
    def last_task_values(self) -> Values:
        """Like `values`, but on the last task's test data only. Metrics not measured per task are omitted."""
        metrics = self.run.table("metrics", *FINAL_COLUMNS)
        good = {trial for trial, row in self.rows.items() if row.status == "ok"}
        found = final_metrics(metrics, self.matrices, "last")
        return {name: {t: value for t, value in of.items() if t in good} for name, of in found.items()}

    @functools.cached_property
    def solutions(self) -> dict[str, dict[frozenset[str], PairValue]]:
        """The values of metrics that compare two solutions, by metric and by the ids of the two trials.

        For the null, these are the ids of a trial and its control.

        Raises:
            StoreError: the table of pairs is unreadable.
        """
        return pair_values(self.run.pairs)

    @functools.cached_property
    def unlisted(self) -> dict[str, frozenset[str]]:
        """The metrics measured only for readings of claims, and the metrics recorded alongside them, by experiment."""
        found = {}
        for name in self.suite.experiments:
            entries = [self.metrics[entry.name] for entry in unlisted(self.suite, name) if entry.name in self.metrics]
            found[name] = frozenset(one.name for metric in entries for one in (metric, *companions(metric)))
        return found

    @functools.cached_property
    def every_value(self) -> Values:
        """Like `values`, but including controls."""
        metrics = self.run.table("metrics", *FINAL_COLUMNS)
        rows = {**self.rows, **self.control_rows}
        return trial_values(rows, self.matrices, metrics, self.pruning, self.online)

    def trial_values(self, *, controls: bool = False) -> Iterator[TrialValue]:
        """Yield a value for each finished trial and each metric measured on its experiment and model.

        Trials are in plan order, metrics in catalog order; controls, if requested, come last.
        """
        chosen = {trial.id: trial for trial in (*self.trials, *(self.controls if controls else ()))}
        values = self.every_value
        taken = {
            (chosen[trial].experiment, chosen[trial].model, name)
            for name in values
            for trial in values[name]
            if trial in chosen
        }
        rows = {**self.rows, **self.control_rows}
        for trial in chosen.values():
            for name in self.metrics if trial.id in rows else ():
                if (trial.experiment, trial.model, name) in taken:
                    value = values[name].get(trial.id, math.nan)
                    yield TrialValue(trial, self.status(trial.id), name, value)

    @functools.cached_property
    def not_learnt(self) -> dict[str, NotLearnt]:
        """The tasks not learnt by each trial with status `ok`, by trial id, omitting trials that learnt all tasks."""
        right = accuracy_column([self.suite.stage])
        column = {"validation": "validation_loss", "test": "loss"}[self.split]
        table = self.run.table("accuracy", "trial", "after_task", "task", right, column, "majority", "examples")
        accuracy = accuracy_matrices(table, right)
        start = {name: start_losses(matrix) for name, matrix in accuracy_matrices(table, column).items()}
        guess, examples = (
            {name: right_after(matrix) for name, matrix in accuracy_matrices(table, of).items()}
            for of in ("majority", "examples")
        )
        held = {
            trial.id: Held(
                accuracy[trial.id],
                start[trial.id],
                guess[trial.id],
                examples[trial.id],
                self.outlines[trial.experiment].classes,
            )
            for trial in self.trials
            if self.status(trial.id) == "ok" and trial.id in self.matrices
        }
        return not_learnt(held, self.run.table("curves", "trial", "task", "train_loss"))

    def status(self, trial: str) -> str:
        """Return the status of a trial: `ok`, `diverged`, `failed`, `above_target`, or `missing` if it is not finished.

        A trial that ended above the target training loss is `ok` in the table of trials but not here, because it must
        not enter means or pairs of solutions at equal training loss. Reports count such trials, like diverged ones.
        """
        row = self.rows.get(trial) or self.control_rows.get(trial)
        if row is None:
            return "missing"
        return "above_target" if row.status == "ok" and row.tasks_above_target else row.status


def read_results(run: RunDirectory, suite: Suite | None = None) -> Results:
    """Read the results of a run.

    suite: the suite whose trials are read; by default, the run's own `suite.yaml`.

    Raises:
        SuiteError: the run's `suite.yaml` was not written by `optbench run`.
        StoreError: a table is unreadable.
    """
    # Optimizers and metrics are looked up by name below, so names are checked. Settings are not: a run may have been
    # trained with settings that are now rejected.
    suite = suite or load_suite(
        run.path / "suite.yaml",
        check_optimizer=check_names,
        as_written=True,
    )
    table = run.table("trials")
    names = [name for name in table.column_names if name in TrialRow.__dataclass_fields__]
    ids = table["trial"].to_pylist()
    rows = {trial: TrialRow(**row) for trial, row in zip(ids, table.select(names).to_pylist(), strict=True)}
    planned = trials(suite)
    controls = tuple(trial for trial in planned if trial.is_control)
    of_controls = {trial.id: rows.pop(trial.id) for trial in controls if trial.id in rows}
    return Results(run, suite, tuple(trial for trial in planned if not trial.is_control), rows, controls, of_controls)


def check_matrices(
    place: Path, accuracy: pa.Table, tasks: Mapping[str, int], protocols: Mapping[str, Protocol] = MappingProxyType({})
) -> None:
    """Raise StoreError unless every matrix has exactly one row for each entry that its protocol scores.

    After divergence, these rows hold null.

    place: the path quoted in the message.
    tasks: T of each trial. If it is missing or 0 (unknown), the largest task number in the trial's rows is used.
    protocols: the protocol of each trial. If it is missing or does not name the entries to score, a matrix with all
    (T+1) T entries is valid as well.
    """
    trial, ids = codes(accuracy["trial"])
    after, task = (numbers(accuracy[name]).astype(np.int64) for name in ("after_task", "task"))
    reached = np.zeros(len(ids), np.int64)
    np.maximum.at(reached, trial, np.maximum(after, task))
    needed = np.array([tasks.get(name, 0) for name in ids], np.int64)
    needed = np.where(needed > 0, needed, reached)
    rows = np.bincount(trial, minlength=len(ids))
    scores = [None if (one := protocols.get(name)) is None else one.score for name in ids]
    whole = rows == (needed + 1) * needed
    # Rows are counted before a matrix is allocated, because a damaged file may claim any number of tasks.
    for i, (score, t, n) in enumerate(zip(scores, needed.tolist(), rows.tolist(), strict=True)):
        if reached[i] != t or (n != _count(score, t) and not (score is None and whole[i])):
            raise StoreError(f"{place}: {ids[i]}: {_expected(score, t)}, got {n} rows up to task {reached[i]}")
    starts = np.concatenate([[0], np.cumsum((needed + 1) * needed)]).astype(np.int64)
    times = np.bincount(starts[trial] + after * needed[trial] + task - 1, minlength=int(starts[-1]))
    for i, (score, t) in enumerate(zip(scores, needed.tolist(), strict=True)):
        found = times[starts[i] : starts[i + 1]]
        if len(twice := np.flatnonzero(found > 1)):
            row, column = divmod(int(twice[0]), t)
            raise StoreError(f"{place}: {ids[i]}: the accuracy on task {column + 1} after task {row} is listed twice")
        if not whole[i] and (found != _entries(score, t).ravel()).any():
            raise StoreError(f"{place}: {ids[i]}: {_expected(score, t)}, got rows for other entries")


def check_online(place: Path, online: pa.Table, tasks: Mapping[str, int], good: Set[str]) -> None:
    """Raise StoreError unless each trial in `good` has one row per task, and every other trial at most one per task.

    place: the path quoted in the message.
    tasks: T of each trial. If it is missing or 0 (unknown), the largest task number in the trial's rows is used.
    """
    trial, ids = codes(online["trial"])
    task = numbers(online["task"]).astype(np.int64)
    rows = np.bincount(trial, minlength=len(ids))
    places, times = np.unique(np.column_stack([trial, task]), axis=0, return_counts=True)
    if len(twice := np.flatnonzero(times > 1)):
        code, number = places[twice[0]].tolist()
        raise StoreError(f"{place}: {ids[code]}: task {number} is listed twice")
    last = np.zeros(len(ids), np.int64)
    np.maximum.at(last, trial, task)
    for name, n, reached in zip(ids, rows.tolist(), last.tolist(), strict=True):
        count = tasks.get(name) or reached
        if reached > count or (n < count and name in good):
            got = f"{n} rows up to task {reached}"
            raise StoreError(f"{place}: {name}: expected {count} rows, for tasks 1 to {count}, got {got}")


@functools.cache
def _entries(score: Rule | None, tasks: int) -> NDArray[np.int64]:
    """Return a matrix (T+1, T) with 1 at each entry that the protocol scores and 0 elsewhere."""
    found = np.zeros((tasks + 1, tasks), np.int64)
    for after in range(tasks + 1):
        found[after, [task - 1 for task in scored_tasks(score, tasks, after)]] = 1
    return found


@functools.cache
def _count(score: Rule | None, tasks: int) -> int:
    return sum(len(scored_tasks(score, tasks, after)) for after in range(tasks + 1))


def _expected(score: Rule | None, tasks: int) -> str:
    n = _count(score, tasks)
    some = "" if n == (tasks + 1) * tasks else ", as selected by protocol.score"
    return f"expected {n} rows, for tasks 1 to {tasks} after tasks 0 to {tasks}{some}"
