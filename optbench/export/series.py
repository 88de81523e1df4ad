"""The series that trackers plot for a trial: a value for each name and position on an axis.

The values are those in the run's tables; nulls are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from optbench.errors import StoreError
from optbench.store import RunDirectory
from optbench.store.columns import codes, known, numbers
from optbench.store.tables import AccuracyRow, CurveRow, OnlineRow, Row, arrow_fields

Axis: TypeAlias = Literal["step", "after_task", "task"]
"""`step`: optimizer steps of the trial over all its tasks. `after_task`: number of finished tasks, 0 before training.
`task`: index of a task, from 1."""
MOST = 2**63
"""Exclusive upper limit for positions on an axis, because trackers store positions in 64 bits."""


@dataclass(frozen=True)
class Entry:
    """The values of a trial at one position on an axis, by names such as `curves/train_loss` and `accuracy/task_1`."""

    axis: Axis
    at: int
    values: Mapping[str, float]


Series: TypeAlias = Callable[[str], Iterator[Entry]]
"""A function that yields the entries of the trial with a given id, along one axis."""


def read_series(run: RunDirectory) -> tuple[Series, ...]:
    """Return the series of a run: the training curves, the accuracies after each task and the online recordings.

    Raises:
        StoreError: a table is damaged.
    """
    return _curves(run), _matrix(run), _online(run)


def _curves(run: RunDirectory) -> Series:
    """Return the series `curves/<column>` over a trial's steps. The columns include the task and the step within it."""
    rows = _Rows(run.table(CurveRow.table), ("task", "step"), ("task", "step", *_measured(CurveRow)))
    task, step = rows.order

    def of(trial: str) -> Iterator[Entry]:
        before, reached, current = 0, 0, None
        for i in rows.of(trial):
            if task[i] != current:
                before, current = reached, task[i]
            reached = before + int(step[i])
            if reached >= MOST:
                file = run.path / "curves.parquet"
                raise StoreError(f"{file}: {trial}: expected fewer than 2**63 steps in total, got {reached}")
            yield Entry("step", reached, {f"curves/{name}": value for name, value in rows.values(i).items()})

    return of


def _matrix(run: RunDirectory) -> Series:
    """Return the series `<column>/task_<task>` of the table `accuracy`, over the number of finished tasks."""
    columns = [name for name in _measured(AccuracyRow) if name != "majority"]
    rows = _Rows(run.table(AccuracyRow.table), ("after_task", "task"), columns)
    after, task = rows.order

    def of(trial: str) -> Iterator[Entry]:
        places = rows.of(trial)
        for group in np.split(places, np.flatnonzero(np.diff(after[places])) + 1) if len(places) else ():
            values = {f"{name}/task_{task[i]}": v for i in group for name, v in rows.values(i).items()}
            yield Entry("after_task", int(after[group[0]]), values)

    return of


def _online(run: RunDirectory) -> Series:
    """Return the series `online/<column>` over tasks."""
    rows = _Rows(run.table(OnlineRow.table), ("task",), _measured(OnlineRow))
    (task,) = rows.order

    def of(trial: str) -> Iterator[Entry]:
        for i in rows.of(trial):
            yield Entry("task", int(task[i]), {f"online/{name}": value for name, value in rows.values(i).items()})

    return of


def _measured(row: type[Row]) -> list[str]:
    """Return the columns of a table that contain measurements."""
    return [field.name for field in arrow_fields(row) if pa.types.is_floating(field.type)]


class _Rows:
    """The rows of a table by trial, sorted by some of its columns."""

    def __init__(self, table: pa.Table, order: Sequence[str], columns: Sequence[str]) -> None:
        self.order = tuple(numbers(table[name]).astype(np.int64) for name in order)
        self._columns = {name: (numbers(table[name]), known(table[name])) for name in columns}
        self._places: dict[str, NDArray[np.int64]] = {}
        if table.num_rows:
            trial, ids = codes(table["trial"])
            places = np.lexsort((*reversed(self.order), trial))
            ends = np.searchsorted(trial[places], np.arange(1, len(ids)))
            self._places = dict(zip(ids, np.split(places, ends), strict=True))

    def of(self, trial: str) -> NDArray[np.int64]:
        """Return the positions of a trial's rows, in order; empty if it has none."""
        return self._places.get(trial, np.empty(0, np.int64))

    def values(self, place: np.int64) -> dict[str, float]:
        """Return the values of one row, without nulls."""
        return {name: float(values[place]) for name, (values, there) in self._columns.items() if there[place]}
