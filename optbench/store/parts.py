"""Parts: what one cohort found, in a folder that is there wholly or not at all, with the checksum of every file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from optbench.errors import StoreError
from optbench.store.files import reported, sync

PARTS = "parts"
MANIFEST = "sha256.json"


def write_part(folder: Path, name: str, tables: Mapping[str, pa.Table]) -> None:
    """Write the tables to `folder/name`, in one rename; what was there before goes.

    Raises:
        StoreError: the folder cannot be written.
    """
    writing, part = folder / ".writing", folder / name
    with reported(part):
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        sums = {}
        for table_name, table in tables.items():
            file = writing / f"{table_name}.parquet"
            write_table(table, file)
            sync(file)
            sums[file.name] = _sum(file)
        (writing / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        sync(writing / MANIFEST)
        remove(part)
        writing.rename(part)
        sync(folder)


def remove(folder: Path) -> None:
    """Remove a part, or all of them, so that a kill in between leaves no half of it: out of sight first.

    Raises:
        StoreError: it cannot be moved.
    """
    gone = folder.with_name(f".removed-{folder.name}")
    with reported(folder):
        shutil.rmtree(gone, ignore_errors=True)
        if folder.exists():
            folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def write_table(table: pa.Table, file: Path) -> None:
    """Parquet with a checksum of every page, which reading it verifies."""
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def find_parts(path: Path) -> tuple[Path, ...]:
    """The parts of a run directory, not looked into."""
    parts = path / PARTS
    return tuple(sorted(p for p in parts.iterdir() if not p.name.startswith("."))) if parts.is_dir() else ()


def check_part(part: Path) -> None:
    """Raises StoreError unless every file of the part is there, and as it was written."""
    file = part / MANIFEST
    try:
        sums = json.loads(file.read_text(encoding="utf-8"))
        expected = {str(name): str(checksum) for name, checksum in sums.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{file}: unreadable: {error}") from None
    for name, checksum in expected.items():
        try:
            found = _sum(part / name)
        except OSError as error:
            raise StoreError(f"{part / name}: unreadable: {error.strerror}") from None
        if found != checksum:
            raise StoreError(f"{part / name}: not what was written: its checksum differs")
    if extra := sorted(p.name for p in part.iterdir() if p.name not in {*expected, MANIFEST}):
        raise StoreError(f"{part / extra[0]}: not a file of this run")


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
