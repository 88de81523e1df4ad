"""Reading of run directories, including those of killed runs, without executing any code found there."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from optbench.errors import StoreError, hint
from optbench.paths import user_path
from optbench.store import pairs_table
from optbench.store.contents import checked
from optbench.store.entries import check_entries
from optbench.store.parts import PARTS, check_part, find_parts
from optbench.store.record import check_record, read_record, shown
from optbench.store.tables import (
    ADDED,
    ALL_TABLES,
    KEY_COLUMNS,
    SCHEMA_VERSION,
    VERSION_KEY,
    Row,
    SketchRow,
    arrow_schema,
)


@dataclass(frozen=True)
class RunDirectory:
    """A run on disk, whose tables are read once, on first use."""

    path: Path
    record: dict[str, Any]
    _parts: tuple[Path, ...]
    _tables: dict[tuple[str, ...], pa.Table] = field(default_factory=dict, compare=False, repr=False)
    label: str | None = None

    @property
    def id(self) -> str:
        """The name of the directory, preceded by parent folders if needed to distinguish runs shown together."""
        return self.label or self.path.name

    def table(self, name: str, *columns: str) -> pa.Table:
        """Return a table of `store.tables`, or only some of its columns, which must include `trial`.

        Raises:
            StoreError: a file is damaged, lacks a column, or has another schema version.
        """
        key = (name, *columns)
        if key not in self._tables:
            self._tables[key] = _merged(self.path, self._parts, name, self._settled, columns)
        return self._tables[key]

    @functools.cached_property
    def pairs(self) -> pa.Table:
        """The table `pairs`; empty if the suite does not request comparisons. Raises the errors of `table`."""
        return read_pairs(self.path, self._parts)

    def checkpoint(self, place: str) -> dict[str, NDArray[Any]] | None:
        """Return the final weights of a trial by parameter name; None if the file was deleted to save space.

        place: the path of the file relative to the run directory, from the trial's row.

        Raises:
            StoreError: the file is damaged.
        """
        file = self.path / place
        try:
            found: dict[str, NDArray[Any]] = load_file(file)
        except FileNotFoundError:
            return None
        # AttributeError, KeyError: a dtype that NumPy lacks.
        except (OSError, SafetensorError, AttributeError, KeyError) as error:
            raise StoreError(f"{file}: unreadable: {str(error).splitlines()[0]}") from error
        return found

    @functools.cached_property
    def _settled(self) -> pa.Array:
        """Trials whose newest rows are in the merged tables.

        A part is never older than the merged tables, so it takes precedence. An interrupted merge leaves rows of trials
        that are missing from `trials`, which is written last; those rows are ignored.
        """
        merged = _trials(self.path)
        for part in self._parts:
            merged = merged.filter(pc.invert(pc.is_in(merged, value_set=_trials(part))))
        return merged


def read_run(path: Path) -> RunDirectory:
    """Read the run in the directory `path`.

    Raises:
        StoreError: `path` is not a run directory, a file is damaged, or the schema version differs.
    """
    return RunDirectory(path, read_json(path), read_parts(path))


def read_runs(paths: Sequence[Path]) -> list[RunDirectory]:
    """Read runs to be shown side by side, distinguishing runs with the same id by their parent folders.

    Raises:
        StoreError: as in `read_run`.
    """
    return [dataclasses.replace(read_run(path), label=label) for path, label in zip(paths, _labels(paths), strict=True)]


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest end of each path that distinguishes its directory from the others."""
    places = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100
    labels = []
    for path, place in zip(paths, places, strict=True):
        rivals = {other for other in places if other != place and other.name == place.name}
        own = place.parts
        for count in range(1, len(own) + 1):
            label = "/".join(own[-count:]) if count < len(own) else str(place)
            if all(other.parts[-count:] != own[-count:] for other in rivals):
                break
        labels.append(path.name if not rivals else label)
    return labels


def read_parts(path: Path) -> tuple[Path, ...]:
    """Return the parts with the results written since the run was created or last resumed.

    Raises:
        StoreError: a file in one of these parts is missing or damaged.
    """
    parts = find_parts(path / PARTS)
    for part in parts:
        check_part(part)
    return parts


def run_ids(runs_dir: Path) -> list[str]:
    """Return the ids of the runs in `runs_dir`, oldest first."""
    try:
        places = list(runs_dir.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise StoreError(f"{runs_dir}: unreadable: {getattr(error, 'strerror', None) or error}") from None
    places = [path for path in places if not path.name.startswith(".")]  # hidden: still being created
    found = [(read_created(path), path.name) for path in places if is_run(path)]
    return [name for _, name in sorted(found)]


def find_run(text: str, runs_dir: Path) -> Path:
    """Return the directory of the run that `text` names: a directory, a run id, or `latest`.

    Raises:
        StoreError: there is no such run, or `check_entries` rejects its directory.
    """
    if text == "latest":
        ids = run_ids(runs_dir)
        if not ids:
            raise StoreError(f"{runs_dir}: no runs yet; create one with 'optbench run SUITE'")
        check_entries(runs_dir / ids[-1])
        return runs_dir / ids[-1]
    for path in (user_path(text, "run") if text.startswith("~") else Path(text), runs_dir / text):
        if is_run(path):
            check_entries(path)
            return path
    ids = run_ids(runs_dir)
    raise StoreError(f"no run '{text}' in {runs_dir}{hint(text, ids)}")


def is_run(path: Path) -> bool:
    """Return whether `path` is a directory with a `run.json`."""
    return os.path.isfile(path / "run.json")  # noqa: PTH113 (also False for a name that is too long)


def read_created(path: Path) -> str:
    """Return the time at which a run was created, as a sort key. Runs with an unreadable record sort first."""
    try:
        return str(read_record(path / "run.json").get("created", ""))
    except (OSError, StoreError, AttributeError):
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """Read `run.json` of a run directory; raise StoreError if it is missing, invalid or of another schema version."""
    file = path / "run.json"
    check_entries(path)
    try:
        record = read_record(file)
    except FileNotFoundError:
        raise StoreError(f"{path}: not a run directory (it has no run.json)") from None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        came = record.get("schema_version") if isinstance(record, dict) else None
        raise StoreError(f"{file}: expected schema version {SCHEMA_VERSION}, got {shown(came)}")
    check_record(file, record)
    return record


def read_pairs(path: Path, parts: Sequence[Path]) -> pa.Table:
    """Read the table `pairs` of a run: the merged rows, then the rows in the parts.

    A merged row is ignored if the parts contain results of one of its trials, or a pair whose `trial_a` is one of them.

    parts: the parts of the run, as returned by `read_parts`.
    """
    merged = read_file(path / f"{pairs_table.NAME}.parquet", pairs_table.SCHEMA)
    if not parts:
        return merged
    compared = [read_file(part / f"{pairs_table.NAME}.parquet", pairs_table.SCHEMA) for part in parts]
    for newer in (*map(_trials, parts), *(table["trial_a"].combine_chunks() for table in compared)):
        merged = without(merged, newer)
    return pa.concat_tables([merged, *compared])


def without(table: pa.Table, trials: pa.Array) -> pa.Table:
    """Drop the rows of a table of pairs that involve any of these trials."""
    named = pc.or_(*(pc.is_in(table[side], value_set=trials) for side in ("trial_a", "trial_b")))
    return table.filter(pc.invert(named)) if pc.any(named, min_count=0).as_py() else table


def done_trials(trials: pa.Table) -> set[str]:
    """Return the ids of trials that need no further training, because they are `ok` or diverged.

    trials: the table `trials`. Failed trials are not included, because they are trained again.
    """
    pairs = zip(trials["trial"].to_pylist(), trials["status"].to_pylist(), strict=True)
    return {trial for trial, status in pairs if status != "failed"}


def read_rows(file: Path, row_type: type[Row]) -> list[tuple[str, Row]]:
    """Return the rows of a table file, each with the id of its trial; an empty list if the file does not exist.

    Raises the errors of `RunDirectory.table`.
    """
    records = read_file(file, arrow_schema(row_type)).to_pylist()
    found: list[tuple[str, Row]] = []
    for record in records:
        fields: dict[str, Any] = {name: value for name, value in record.items() if name not in KEY_COLUMNS}
        if row_type is SketchRow:
            fields["sketch"] = tuple(fields["sketch"])
        found.append((record["trial"], row_type(**fields)))
    return found


def only(table: pa.Table, trials: pa.Array) -> pa.Table:
    """Return the rows of these trials, in the order of the table."""
    keep = pc.is_in(table["trial"], value_set=trials)
    return table if pc.all(keep, min_count=0).as_py() else table.filter(keep)


def _trials(folder: Path) -> pa.Array:
    # Arrow values throughout: converting a list to an array imports pandas, which takes longer than everything else.
    return read_table(folder / "trials.parquet", "trials")["trial"].combine_chunks()


def _merged(path: Path, parts: Sequence[Path], name: str, settled: pa.Array, columns: Sequence[str] = ()) -> pa.Table:
    top = only(read_table(path / f"{name}.parquet", name, columns), settled)
    return pa.concat_tables([top, *(read_table(p / f"{name}.parquet", name, columns) for p in parts)]) if parts else top


def read_table(file: Path, name: str, columns: Sequence[str] = ()) -> pa.Table:
    return read_file(file, arrow_schema(ALL_TABLES[name]), columns)


def read_file(file: Path, schema: pa.Schema, columns: Sequence[str] = ()) -> pa.Table:
    wanted = pa.schema([schema.field(column) for column in columns]) if columns else schema
    if not file.exists():
        return pa.Table.from_batches([], wanted)  # schema.empty_table() imports pandas
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:  # pq.read_table imports pandas
            found = opened.schema_arrow
            version = (found.metadata or {}).get(VERSION_KEY.encode(), b"none").decode(errors="replace")
            if version != str(SCHEMA_VERSION):
                raise StoreError(f"{file}: expected schema version {SCHEMA_VERSION}, got {version}")
            missing = [field for field in schema.names if field not in found.names]
            if lacking := [field for field in missing if (file.stem, field) not in ADDED]:
                raise StoreError(f"{file}: lacks the column {lacking[0]}")
            table = opened.read(columns=[name for name in wanted.names if name not in missing])
            for name in missing:
                if name in wanted.names:
                    table = table.append_column(wanted.field(name), pa.nulls(table.num_rows, wanted.field(name).type))
            return checked(file, table.select(wanted.names).cast(wanted))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{file}: unreadable: {str(error).splitlines()[0]}") from error
