"""Reading run directories: finished ones, and what a killed one left behind. Executes nothing it finds there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from optbench.errors import StoreError, nearest
from optbench.store.tables import SCHEMA_VERSION, TABLES, arrow_schema

PARTS = "parts"


@dataclass(frozen=True)
class Run:
    """A run as it lies on the disk: its record and its tables, each with the key columns first."""

    path: Path
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame]

    @property
    def id(self) -> str:
        return self.path.name


def read_run(path: Path) -> Run:
    """The run in directory `path`.

    Raises:
        StoreError: it is not a run directory, another schema version wrote it, or a table is unreadable.
    """
    record = read_json(path)
    return Run(path, record, {name: table.to_pandas() for name, table in read_tables(path).items()})


def run_ids(runs_dir: Path) -> list[str]:
    """Ids of the runs in `runs_dir`, the oldest first."""
    if not runs_dir.is_dir():
        return []
    found = [(read_created(path), path.name) for path in runs_dir.iterdir() if (path / "run.json").is_file()]
    return [name for _, name in sorted(found)]


def find_run(text: str, runs_dir: Path) -> Path:
    """The directory of a run given as a directory, a run id, or `latest`.

    Raises:
        StoreError: there is no such run.
    """
    ids = run_ids(runs_dir)
    if text == "latest":
        if not ids:
            raise StoreError(f"{runs_dir}: no runs here yet; 'optbench run SUITE' makes one")
        return runs_dir / ids[-1]
    for path in (Path(text), runs_dir / text):
        if (path / "run.json").is_file():
            return path
    guess = nearest(text, ids)
    raise StoreError(f"no run '{text}' in {runs_dir}" + (f"; did you mean '{guess}'?" if guess else ""))


def read_created(path: Path) -> str:
    """When a run was created, for sorting; an unreadable record sorts first."""
    try:
        return str(json.loads((path / "run.json").read_text(encoding="utf-8")).get("created", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """`run.json` of a run directory.

    Raises:
        StoreError: it is missing, unreadable, or of another schema version.
    """
    file = path / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: not a run directory (it has no run.json)") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: unreadable: {error}") from error
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        came = record.get("schema_version") if isinstance(record, dict) else None
        raise StoreError(f"{file}: needs schema version {SCHEMA_VERSION}; {came} came")
    return record


def read_tables(path: Path) -> dict[str, pa.Table]:
    """Every table of a run: the merged ones, and parts of trials that were finished after the last merge.

    Raises:
        StoreError: a file is damaged or lacks a column.
    """
    parts_dir = path / PARTS
    parts = sorted(p for p in parts_dir.iterdir() if not p.name.startswith(".")) if parts_dir.is_dir() else []
    found = [{name: _read(part / f"{name}.parquet", name) for name in TABLES} for part in parts]
    merged = {name: _read(path / f"{name}.parquet", name) for name in TABLES}
    # A part is never older than the merged tables, so it wins; and a merge that was cut short has left rows of trials
    # that are not in its `trials` table, which is written last: those do not count.
    renewed = {trial for part in found for trial in part["trials"]["trial"].to_pylist()}
    kept = set(merged["trials"]["trial"].to_pylist()) - renewed
    return {name: pa.concat_tables([only(merged[name], kept), *(part[name] for part in found)]) for name in TABLES}


def done_trials(tables: Mapping[str, pa.Table]) -> set[str]:
    """Ids of trials that need no training: those that ended, well or diverged. A failed trial is tried again."""
    trials = tables["trials"]
    pairs = zip(trials["trial"].to_pylist(), trials["status"].to_pylist(), strict=True)
    return {trial for trial, status in pairs if status != "failed"}


def only(table: pa.Table, trials: set[str]) -> pa.Table:
    """The rows of these trials, in order."""
    keep = [trial in trials for trial in table["trial"].to_pylist()]
    return table if all(keep) else table.filter(pa.array(keep, pa.bool_()))


def _read(file: Path, name: str) -> pa.Table:
    schema = arrow_schema(TABLES[name])
    if not file.exists():
        return schema.empty_table()
    try:
        table = pq.read_table(file, schema=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{file}: unreadable: {str(error).splitlines()[0]}") from error
    missing = [field for field in schema.names if field not in table.column_names]
    if missing:
        raise StoreError(f"{file}: lacks the column {missing[0]}")
    return table.select(schema.names).cast(schema)
