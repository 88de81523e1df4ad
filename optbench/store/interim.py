"""What trials had come to when a task ended, kept so that they can go on from there: `interim/<cohort>/`, a part."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from optbench.plan import Trial
from optbench.store.parts import find_parts, remove, table_files, write_part
from optbench.store.read import read_rows
from optbench.store.tables import ALL_TABLES, Row, arrow_table

MEMBERS, TENSORS = "members.json", "tensors.safetensors"


@dataclass(frozen=True)
class Begun:
    """Where a trial can go on: what it had come to after `task` tasks, in the part `part`."""

    part: Path
    task: int


@dataclass(frozen=True)
class Kept:
    """One training between two tasks: a record of what JSON has, with its `trials` (ids) and its `task` (how many are
    finished); tensors by name; the rows found so far."""

    record: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]
    rows: Sequence[Row]


def write_interim(folder: Path, name: str, kept: Sequence[Kept], trials: Mapping[str, Trial]) -> None:
    """Write the part `name` of trainings that go on together. trials: all that `kept` names, by id.

    Raises:
        StoreError: it cannot be written.
    """
    rows = [(trials[one.record["trials"][0]], row) for one in kept for row in one.rows]
    tables: dict[str, pa.Table] = {}
    for table, row_type in ALL_TABLES.items():
        if own := [(trial, row) for trial, row in rows if isinstance(row, row_type)]:
            tables[table] = arrow_table(row_type, own)
    tensors = {f"{i}.{key}": value for i, one in enumerate(kept) for key, value in one.tensors.items()}
    text = json.dumps([one.record for one in kept])
    files: dict[str, Callable[[Path], object]] = {
        MEMBERS: functools.partial(Path.write_text, data=text, encoding="utf-8"),
        TENSORS: functools.partial(save_file, tensors),
        **table_files(tables),
    }
    write_part(folder, name, files)


def read_interim(part: Path) -> list[Kept]:
    """What `write_interim` wrote; the rows of one training are in order within each table.

    Raises:
        StoreError: a table is unreadable.
    """
    records = json.loads((part / MEMBERS).read_text(encoding="utf-8"))
    tensors = load_file(part / TENSORS)
    rows: dict[str, list[Row]] = {record["trials"][0]: [] for record in records}
    for name, row_type in ALL_TABLES.items():
        for trial, row in read_rows(part / f"{name}.parquet", row_type):
            rows[trial].append(row)
    found = []
    for i, record in enumerate(records):
        prefix = f"{i}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        found.append(Kept(record, own, rows[record["trials"][0]]))
    return found


def find_begun(folder: Path) -> dict[str, Begun]:
    """Where trials can go on, by their ids; the furthest place of each. Their parts have been checked."""
    found: dict[str, Begun] = {}
    for part in find_parts(folder):
        for record in json.loads((part / MEMBERS).read_text(encoding="utf-8")):
            for trial in record["trials"]:
                if trial not in found or found[trial].task < record["task"]:
                    found[trial] = Begun(part, record["task"])
    return found


def drop_begun(folder: Path, done: Iterable[str]) -> None:
    """Remove the parts all of whose trials have ended by now.

    Raises:
        StoreError: one cannot be moved.
    """
    ended = set(done)
    for part in find_parts(folder):
        records = json.loads((part / MEMBERS).read_text(encoding="utf-8"))
        if all(trial in ended for record in records for trial in record["trials"]):
            remove(part)
