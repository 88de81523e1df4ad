"""A run directory being written (DESIGN.md: the run directory).

What a finished cohort found goes to `parts/<cohort>/` in one rename, so it is there wholly or not at all. The tables
at the top are merged from the parts now and then and at the end; then the parts go.
"""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from optbench.errors import StoreError
from optbench.plan import Cohort, Trial
from optbench.store.files import reported, sync, write_atomically, write_json, write_text
from optbench.store.read import PARTS, only, read_json, read_tables
from optbench.store.tables import SCHEMA_VERSION, TABLES, Row, TrialRow, arrow_table

MERGE_SHARE = 0.05
"""At most this share of the time between two merges is spent on merging."""


class RunWriter:
    """Owns one run directory while its trials are trained."""

    def __init__(self, path: Path, record: dict[str, Any], order: Sequence[Trial]) -> None:
        self.path = path
        self._record = record
        self._order = {trial.id: i for i, trial in enumerate(order)}
        self._tables = read_tables(path)
        self._merged_at = time.monotonic()
        self._merge_seconds = 0.0

    @staticmethod
    def create(path: Path, suite_text: str, record: Mapping[str, Any], order: Sequence[Trial]) -> RunWriter:
        """A new run directory with its suite and record.

        Raises:
            StoreError: the directory exists already or cannot be written.
        """
        with reported(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:
                raise StoreError(
                    f"{path}: this run exists already; choose another --name, or continue it with --resume {path.name}"
                ) from None
            (path / PARTS).mkdir()
            (path / "checkpoints").mkdir()
        write_text(path / "suite.yaml", suite_text)
        writer = RunWriter(path, {"schema_version": SCHEMA_VERSION, **record, "created": _now()}, order)
        writer._save_record("running")
        return writer

    @staticmethod
    def resume(path: Path, provenance: Mapping[str, Any], command: Sequence[str], order: Sequence[Trial]) -> RunWriter:
        """An existing run directory, to train what it lacks. Its record keeps a list of every resumption."""
        record = read_json(path)
        resumed = [*record.get("resumed", []), {"at": _now(), "command": list(command), "provenance": dict(provenance)}]
        writer = RunWriter(path, {**record, "resumed": resumed}, order)
        writer._merge()  # so that no part is older than the merged tables
        with reported(path):
            shutil.rmtree(path / PARTS, ignore_errors=True)
            (path / PARTS).mkdir()
        writer._save_record("running")
        return writer

    def statuses(self) -> dict[str, int]:
        """How many trials have each status."""
        values = self._tables["trials"]["status"].to_pylist()
        return {status: values.count(status) for status in sorted(set(values))}

    def add(self, cohort: Cohort, rows: Sequence[tuple[Trial, Row]]) -> None:
        """Make the results of one cohort durable. Rows of the same trials from an earlier failure are replaced.

        Raises:
            StoreError: the directory cannot be written.
        """
        writing, part = self.path / PARTS / ".writing", self.path / PARTS / cohort.id
        found = {
            name: arrow_table(row_type, [(trial, row) for trial, row in rows if isinstance(row, row_type)])
            for name, row_type in TABLES.items()
        }
        with reported(part):
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()
            for name, table in found.items():
                pq.write_table(table, writing / f"{name}.parquet", compression="zstd")
                sync(writing / f"{name}.parquet")
            if part.exists():
                shutil.rmtree(part)
            writing.rename(part)
            sync(part.parent)
        kept = sorted(set(self._tables["trials"]["trial"].to_pylist()) - {trial.id for trial in cohort.trials})
        for name, table in found.items():
            self._tables[name] = pa.concat_tables([only(self._tables[name], pa.array(kept, pa.string())), table])
        if time.monotonic() - self._merged_at > self._merge_seconds / MERGE_SHARE:
            self._merge()

    def checkpoint(self, trial: Trial, weights: Mapping[str, np.ndarray[Any, Any]]) -> str:
        """Write a trial's final weights; the path relative to the run directory."""
        relative = f"checkpoints/{trial.id.replace('/', '__')}.safetensors"
        metadata = {"trial": trial.id, "optimizer": trial.optimizer, "seed": str(trial.seed)}
        write_atomically(self.path / relative, lambda temporary: save_file(dict(weights), temporary, metadata))
        return relative

    def finish(self, status: str) -> None:
        """Bring the tables up to date and say how the run ended; a complete run keeps no parts."""
        self._merge()
        self._save_record(status)
        if status == "complete":
            shutil.rmtree(self.path / PARTS, ignore_errors=True)

    def _merge(self) -> None:
        started = time.monotonic()
        # `trials` last: a trial that is in it has all its other rows.
        for name in [*(name for name in TABLES if name != TrialRow.table), TrialRow.table]:
            table = self._tables[name]
            # In the order of the plan, whatever the order of finishing: the same run gives the same tables.
            keys = np.array([self._order.get(trial, -1) for trial in table["trial"].to_pylist()], dtype=np.int64)
            ordered = table.take(pa.array(np.argsort(keys, kind="stable")))
            write_atomically(
                self.path / f"{name}.parquet",
                lambda temporary, ordered=ordered: pq.write_table(ordered, temporary, compression="zstd"),  # type: ignore[misc]
            )
        self._merged_at = time.monotonic()
        self._merge_seconds = self._merged_at - started

    def _save_record(self, status: str) -> None:
        self._record = {**self._record, "status": status, "finished": None if status == "running" else _now()}
        write_json(self.path / "run.json", self._record)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
