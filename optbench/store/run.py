"""Writing of a run directory.

The results of a finished cohort are written to `parts/<cohort>/` atomically, with a single rename. The top-level tables
are merged from the parts periodically and at the end. Once a run is complete, its parts are removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from optbench.errors import StoreError
from optbench.file_names import file_name
from optbench.metrics.own import metrics_of
from optbench.plan import Cohort, PairedSolutions, Trial
from optbench.store.files import json_text, reported, sync, write_atomically, write_text
from optbench.store.gathered import Gathered
from optbench.store.interim import Begun, drop_begun
from optbench.store.lock import RunLock, now
from optbench.store.pairs_table import NAME as PAIRS
from optbench.store.pairs_table import PairRow, pairs_table
from optbench.store.parts import INTERIM, PARTS, remove, table_files, write_part, write_table
from optbench.store.plugins import KEY as PLUGINS
from optbench.store.read import RunDirectory, read_json, read_parts, without
from optbench.store.tables import ALL_TABLES, ON_REQUEST, SCHEMA_VERSION, Row, TrialRow, arrow_table
from optbench.store.values import SUMMARY, summary_table

MERGE_SHARE = 0.05
"""Maximum fraction of the time between two merges that is spent on merging."""


FOLDERS = (PARTS, INTERIM, "checkpoints")
LONGEST_NAME = 160
"""Maximum length in bytes of a run's file names, including those of temporary files."""


class RunExists(StoreError):
    """A run with this name already exists."""


class RunWriter:
    """A writer of one run directory, used during training.

    Every method that writes raises StoreError if the directory cannot be written.
    """

    def __init__(self, path: Path, record: dict[str, Any], order: Sequence[Trial], lock: RunLock) -> None:
        self.path = path
        self._lock = lock
        self._record = record
        self._plan = tuple(order)
        self._order = {trial.id: i for i, trial in enumerate(order)}
        found = RunDirectory(path, record, read_parts(path))
        self._gathered = Gathered({name: found.table(name) for name in ALL_TABLES})
        self._pairs = found.pairs
        self._merged_at = time.monotonic()
        self._merge_seconds = 0.0

    @staticmethod
    def create(
        path: Path,
        suite_text: str,
        record: Mapping[str, Any],
        order: Sequence[Trial],
        files: Mapping[str, str | bytes] | None = None,
    ) -> RunWriter:
        """Create a new run directory with its suite and record.

        files: the contents of further files, by path within the run directory.

        Raises:
            RunExists: the directory already exists.
            StoreError: the directory cannot be written, or its file system lacks locks or long file names.
        """
        record = {"schema_version": SCHEMA_VERSION, **record, "run": path.name, "created": now()}
        # The directory has a temporary name until it is complete, so that a kill does not leave a partial run that
        # blocks the name.
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        with reported(path):
            made = [folder for folder in path.parents if not folder.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise RunExists(_exists(path))
            shutil.rmtree(new, ignore_errors=True)
        begun = json_text({**record, "status": "running", "finished": None})
        try:
            with reported(path):
                for folder in (new, *(new / name for name in FOLDERS)):
                    folder.mkdir()
                _check_names(new / "checkpoints")
                for name, content in {"suite.yaml": suite_text, **(files or {}), "run.json": begun}.items():
                    _write_new(new / name, content)
                RunLock(new).release()  # raises now if the file system has no locks
                try:
                    new.rename(path)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process has just created it
                        raise RunExists(_exists(path)) from None
                    raise
                sync(path.parent)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process may have created a run there
                for folder in made:
                    folder.rmdir()
            raise
        return RunWriter(path, record, order, RunLock(path))

    @staticmethod
    def resume(
        path: Path,
        provenance: Mapping[str, Any],
        command: Sequence[str],
        order: Sequence[Trial],
        left: Sequence[str],
        begun: Mapping[str, Begun],
        lock: RunLock | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> RunWriter:
        """Open an existing run directory to train its missing trials, and add the resumption to its record.

        left: ids of the trials to train. begun: the states from which some of these trials continue. Both are recorded,
            so that every result can be traced to the last resumption that lists its trial in `left`, or to the original
            run.
        lock: the lock of the directory, if this process already holds it. extra: further entries for the record.

        Raises:
            StoreError: another process is writing the directory, or the directory cannot be read or written.
        """
        lock = lock or RunLock(path)
        record = read_json(path)
        resumption = {"at": now(), "command": list(command), "provenance": dict(provenance), "left": list(left)}
        after_task = {trial: begun[trial].task for trial in left if trial in begun}
        resumed = [*record.get("resumed", []), {**resumption, "after_task": after_task}]
        writer = RunWriter(path, {**record, **(extra or {}), "resumed": resumed}, order, lock)
        writer._merge()  # ensures that no part is older than the merged tables
        remove(path / PARTS)
        with reported(path):
            for folder in FOLDERS:
                (path / folder).mkdir(exist_ok=True)
        writer._save_record("running")
        return writer

    def grow(self, suite_text: str, suite_hash: str, order: Sequence[Trial], left: Sequence[str]) -> None:
        """Replace the run's suite with one that has more trials. left: ids of the trials to train."""
        write_text(self.path / "suite.yaml", suite_text)
        if self._record.get("resumed"):
            *before, last = self._record["resumed"]
            more = {**last, "left": list(dict.fromkeys([*last["left"], *left]))}
            self._record = {**self._record, "resumed": [*before, more]}
        self._plan = tuple(order)
        self._order = {trial.id: i for i, trial in enumerate(order)}
        self._record = {**self._record, "suite_hash": suite_hash}
        self._save_record("running")

    @property
    def plugins(self) -> list[dict[str, Any]]:
        """The entries for the user's code in the record, oldest first."""
        return list(self._record.get(PLUGINS) or ())

    def add_plugins(self, more: Sequence[Mapping[str, Any]], copies: Mapping[str, bytes]) -> None:
        """Add further versions of the user's code. more: entries for the record. copies: contents of files, by path."""
        for place, content in copies.items():
            with reported(self.path / place):
                _write_new(self.path / place, content)
        self._record = {**self._record, PLUGINS: [*(self._record.get(PLUGINS) or ()), *more]}
        self._save_record("running")

    def statuses(self) -> dict[str, int]:
        """Return the number of finished trials by status."""
        return dict(sorted(Counter(status for status, _ in self.endings().values()).items()))

    def endings(self) -> Mapping[str, tuple[str, str | None]]:
        """Return the status of every finished trial and the path of its final weights, if any, by trial id."""
        return self._gathered.endings

    def add(self, cohort: Cohort, rows: Sequence[tuple[Trial, Row]]) -> None:
        """Write the results of one cohort durably, replacing the rows of trials that had failed earlier."""
        found = {
            name: arrow_table(row_type, [(trial, row) for trial, row in rows if isinstance(row, row_type)])
            for name, row_type in ALL_TABLES.items()
        }
        filled = {name: table for name, table in found.items() if table.num_rows}
        write_part(self.path / PARTS, cohort.id, table_files(filled))
        # The time that the remaining steps take must not grow with the number of finished trials.
        self._gathered.add(found)
        if self._pairs.num_rows:  # comparisons of these trials' earlier weights are no longer valid
            self._pairs = without(self._pairs, found[TrialRow.table]["trial"].combine_chunks())
        drop_begun(self.path / INTERIM, self._gathered.is_done)
        self._merge_now_and_then()

    def add_pairs(self, comparison: PairedSolutions, rows: Sequence[PairRow]) -> None:
        """Write the pairs of one comparison durably, replacing earlier pairs of the same trials."""
        table = pairs_table(rows)
        write_part(self.path / PARTS, comparison.id, table_files({PAIRS: table}))
        self._pairs = pa.concat_tables([without(self._pairs, table["trial_a"].combine_chunks()), table])
        self._merge_now_and_then()

    def adopt(self, run: RunDirectory) -> None:
        """Copy all trials of another run, with their final weights; `finish` adds them to the tables."""
        self._gathered.add({name: run.table(name) for name in ALL_TABLES})
        self._pairs = pa.concat_tables([self._pairs, run.pairs])
        with reported(self.path):
            for place in run.table("trials")["checkpoint"].to_pylist():
                if place is not None and (run.path / place).exists():  # users may delete weights to save space
                    shutil.copy2(run.path / place, self.path / place)

    def checkpoint(self, trial: Trial, weights: Mapping[str, np.ndarray[Any, Any]]) -> str:
        """Write a trial's final weights and return the path relative to the run directory."""
        relative = f"checkpoints/{file_name(trial.parts)}.safetensors"
        metadata = {"trial": trial.id, "optimizer": trial.optimizer, "seed": str(trial.seed)}
        data = _sorted_metadata(save(dict(weights), metadata))
        write_atomically(self.path / relative, lambda temporary: temporary.write_bytes(data))
        return relative

    def finish(self, status: str) -> None:
        """Merge the tables, record how the run ended, and release the lock. Remove the parts of a complete run."""
        try:
            if status != "complete":
                self._save_record(status)  # before merging, which may fail on a full disk; the parts are kept
            self._merge()
            if status == "complete":
                self._save_record(status)
                remove(self.path / PARTS)
                remove(self.path / INTERIM)
        finally:
            self._lock.release()

    def _merge_now_and_then(self) -> None:
        if time.monotonic() - self._merged_at > self._merge_seconds / MERGE_SHARE:
            self._merge()

    def _merge(self) -> None:
        started = time.monotonic()
        if self._pairs.num_rows or (self.path / f"{PAIRS}.parquet").exists():
            names = [self._pairs[side].to_pylist() for side in ("trial_b", "trial_a")]  # the last key comes first
            places = np.array([[self._order.get(trial, -1) for trial in side] for side in names], dtype=np.int64)
            self._save_table(PAIRS, self._pairs.take(pa.array(np.lexsort(places))))
        # `trials` is written last, so that all other rows of a trial in it exist.
        for name in [*(name for name in ALL_TABLES if name != TrialRow.table), TrialRow.table]:
            table = self._gathered.table(name)
            if name in ON_REQUEST and not table.num_rows and not (self.path / f"{name}.parquet").exists():
                continue
            # In plan order rather than order of completion, so that the same run gives the same tables.
            keys = np.array([self._order.get(trial, -1) for trial in table["trial"].to_pylist()], dtype=np.int64)
            ordered = table.take(pa.array(np.argsort(keys, kind="stable")))
            self._save_table(name, ordered)
        tables = {**{name: self._gathered.table(name) for name in ALL_TABLES}, TrialRow.table: ordered}
        self._save_table(SUMMARY, summary_table(tables, metrics_of(self._record), self._plan))
        self._merged_at = time.monotonic()
        self._merge_seconds = self._merged_at - started

    def _save_table(self, name: str, table: pa.Table) -> None:
        write_atomically(self.path / f"{name}.parquet", lambda temporary: write_table(table, temporary))

    def _save_record(self, status: str) -> None:
        self._record = {**self._record, "status": status, "finished": None if status == "running" else now()}
        write_text(self.path / "run.json", json_text(self._record))


def _write_new(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(file)


def _exists(path: Path) -> str:
    return f"{path}: this run already exists; choose another --name, or continue it with --resume {path.name}"


def _check_names(folder: Path) -> None:
    """Raise OSError if the file system does not support names of `LONGEST_NAME` bytes."""
    longest = folder / ("x" * LONGEST_NAME)
    longest.touch()
    longest.unlink()


def _sorted_metadata(data: bytes) -> bytes:
    """Sort the metadata of a safetensors file, because safetensors writes it in no fixed order."""
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
