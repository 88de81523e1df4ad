"""The states from which trials can be resumed, saved at the end of a task in parts `interim/<cohort>.<task>/`.

A new part is written before the older one is removed. Worker processes write the parts, so any part may disappear
while it is being read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from optbench.errors import StoreError
from optbench.plan import Trial
from optbench.store.parts import MANIFEST, find_parts, is_whole, remove, table_files, write_part
from optbench.store.read import read_rows
from optbench.store.tables import ALL_TABLES, Row, arrow_table

MEMBERS = "members.json"


@dataclass(frozen=True)
class Begun:
    """The point at which a trial can be resumed: after `task` tasks, from the state in `part`."""

    part: Path
    task: int


@dataclass(frozen=True)
class Kept:
    """The state of one training at the end of a task.

    record: JSON values, including `trials` (ids) and `task` (the number of finished tasks). state: bytes written by
        `torch.save`. rows: the results so far.
    """

    record: Mapping[str, Any]
    state: bytes
    rows: Sequence[Row]


def write_interim(folder: Path, cohort: str, kept: Sequence[Kept], trials: Mapping[str, Trial]) -> Path:
    """Write the states of a cohort's trainings, replacing the cohort's earlier states; return the path of the part.

    cohort: the id of the cohort. trials: all trials named in `kept`, by id.

    Raises:
        StoreError: the part cannot be written.
    """
    rows = [(trials[one.record["trials"][0]], row) for one in kept for row in one.rows]
    tables: dict[str, pa.Table] = {}
    for table, row_type in ALL_TABLES.items():
        if own := [(trial, row) for trial, row in rows if isinstance(row, row_type)]:
            tables[table] = arrow_table(row_type, own)
    text = json.dumps([one.record for one in kept])
    files: dict[str, Callable[[Path], object]] = {
        MEMBERS: functools.partial(Path.write_text, data=text, encoding="utf-8"),
        **{f"{i}.pt": functools.partial(Path.write_bytes, data=one.state) for i, one in enumerate(kept)},
        **table_files(tables),
    }
    new = f"{cohort}.{kept[0].record['task']}"
    write_part(folder, new, files)
    _remove_older(folder, new)
    return folder / new


def write_arrived(folder: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Write a part received from another machine, replacing the cohort's earlier part.

    If the received part is damaged, it is ignored and the earlier part is kept.

    files: the content of each file by name, including the manifest.

    Raises:
        StoreError: the part cannot be written.
    """
    if is_whole(files):
        content = {file: data for file, data in files.items() if file != MANIFEST}
        write_part(
            folder, name, {file: functools.partial(Path.write_bytes, data=data) for file, data in content.items()}
        )
        _remove_older(folder, name)


def _remove_older(folder: Path, new: str) -> None:
    """Remove the other parts of the cohort to which the part `new` belongs."""
    cohort = new.rpartition(".")[0]
    for part in find_parts(folder):
        if part.name.rpartition(".")[0] == cohort and part.name != new:
            remove(part)


def find_holding(folder: Path, trials: Iterable[str]) -> list[Path]:
    """Return the parts that contain the state of any of these trials. trials: trial ids."""
    wanted = set(trials)
    return [
        part for part in find_parts(folder) if any(wanted & set(member.trials) for member in _members_or_none(part))
    ]


def read_interim(part: Path) -> list[Kept]:
    """Read a part written by `write_interim`. Within each table, the rows of a training keep their order.

    Raises:
        StoreError: a table is unreadable.
    """
    records = json.loads((part / MEMBERS).read_text(encoding="utf-8"))
    rows: dict[str, list[Row]] = {record["trials"][0]: [] for record in records}
    for name, row_type in ALL_TABLES.items():
        for trial, row in read_rows(part / f"{name}.parquet", row_type):
            rows[trial].append(row)
    states = [(part / f"{i}.pt").read_bytes() for i in range(len(records))]
    return [Kept(record, state, rows[record["trials"][0]]) for record, state in zip(records, states, strict=True)]


def find_begun(folder: Path) -> dict[str, Begun]:
    """Return the latest state from which each trial can be resumed, by trial id.

    Invalid parts are ignored. Trials that failed are left out, because they start over. Trials whose state could not be
    saved are also left out.
    """
    found: dict[str, Begun] = {}
    for part in find_parts(folder):
        for member in _members_or_none(part):
            for trial in member.trials if member.status != "failed" and member.refused is None else ():
                if trial not in found or found[trial].task < member.task:
                    found[trial] = Begun(part, member.task)
    return found


def find_refused(folder: Path) -> dict[str, str]:
    """Return the reasons why unfinished trials cannot be resumed, by trial id."""
    members = [member for part in find_parts(folder) for member in _members_or_none(part)]
    return {trial: member.refused for member in members if member.refused is not None for trial in member.trials}


def drop_begun(folder: Path, is_done: Callable[[str], bool]) -> None:
    """Remove the parts whose trials are all done; raise StoreError if a part cannot be moved.

    is_done: a function that returns whether the trial with a given id is done.
    """
    for part in find_parts(folder):
        members = _members_or_none(part)
        if members and all(is_done(trial) for member in members for trial in member.trials):
            remove(part)


class StoredMember(NamedTuple):
    """One training in a part.

    trials: ids of the trials that share the training.
    task: the number of finished tasks.
    status: the status of the training so far.
    refused: the reason why the training cannot be resumed; None if it can.
    """

    trials: tuple[str, ...]
    task: int
    status: str
    refused: str | None


def read_members(part: Path) -> list[StoredMember]:
    """Read the list of trainings in a part; raise StoreError if it is unreadable or malformed."""
    file = part / MEMBERS
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        found = [
            StoredMember(tuple(record["trials"]), record["task"], record["counters"]["status"], record.get("refused"))
            for record in records
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"{file}: unreadable: {type(error).__name__}") from None
    if not found:
        raise StoreError(f"{file}: expected at least one training, got none")
    for member in found:
        texts = all(isinstance(text, str) for text in (*member.trials, member.status, member.refused or ""))
        if not (texts and member.trials and type(member.task) is int and member.task > 0):
            got = repr(tuple(member))[:60]
            raise StoreError(f"{file}: expected trial ids, a number of tasks and a status, got {got}")
    return found


def _members_or_none(part: Path) -> list[StoredMember]:
    try:
        return read_members(part)
    except StoreError:
        return []
