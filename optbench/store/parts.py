"""Parts: folders that are written atomically and contain a checksum of every file."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from optbench.errors import StoreError
from optbench.store.files import reported, sync

PARTS = "parts"
"""The folder in a run directory that holds the results, one part per cohort."""
INTERIM = "interim"
"""The folder in a run directory that holds the state of cohorts in training."""
MANIFEST = "sha256.json"


def write_part(folder: Path, name: str, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write a part `folder/name` with a single rename, replacing an earlier part with the same name.

    files: functions that write a file to a given path, by file name.

    Raises:
        StoreError: the folder cannot be written.
    """
    writing, part = folder / f".writing-{name}", folder / name
    with reported(part):
        shutil.rmtree(writing, ignore_errors=True)
        try:
            # without parents, so that a run directory that was deleted is not recreated
            writing.mkdir()
            sums = {}
            for file_name, write in files.items():
                file = writing / file_name
                write(file)
                sync(file)
                sums[file_name] = _sum(file)
            (writing / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
            sync(writing / MANIFEST)
            remove(part)
            writing.rename(part)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)  # free the space if the disk is full
            raise
        sync(folder)


def table_files(tables: Mapping[str, pa.Table]) -> dict[str, Callable[[Path], object]]:
    """Return the functions that write these tables as files of a part, by file name."""
    return {f"{name}.parquet": functools.partial(write_table, table) for name, table in tables.items()}


def remove(folder: Path) -> None:
    """Remove a part, or a folder of parts, after renaming it, so that a killed process leaves no partial part.

    Raises:
        StoreError: the folder cannot be moved.
    """
    gone = folder.with_name(f".removed-{folder.name}")
    with reported(folder):
        shutil.rmtree(gone, ignore_errors=True)
        if folder.exists():
            folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def write_table(table: pa.Table, file: Path) -> None:
    """Write a Parquet file with page checksums, which are verified on reading."""
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def find_parts(folder: Path) -> tuple[Path, ...]:
    """Return the paths of the parts in a folder, without reading them."""
    return tuple(sorted(p for p in folder.iterdir() if not p.name.startswith("."))) if folder.is_dir() else ()


def check_part(part: Path) -> None:
    """Raise StoreError if a file of a part is missing or does not match its checksum, or a table has no checksum."""
    file = part / MANIFEST
    try:
        sums = json.loads(file.read_text(encoding="utf-8"))
        expected = {str(name): str(checksum) for name, checksum in sums.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"{file}: unreadable: {error}") from None
    for name in expected:
        if Path(name).name != name or name == "..":
            raise StoreError(f"{file}: expected names of files in this part, got '{name}'")
    for name, checksum in expected.items():
        try:
            found = _sum(part / name)
        except OSError as error:
            raise StoreError(f"{part / name}: unreadable: {error.strerror}") from None
        if found != checksum:
            raise StoreError(f"{part / name}: damaged: its checksum differs")
    # Of the other files, only those that could be mistaken for tables are rejected, because file managers leave hidden
    # files in any folder.
    if extra := sorted(p.name for p in part.iterdir() if p.suffix == ".parquet" and p.name not in expected):
        raise StoreError(f"{part / extra[0]}: expected a file listed in {MANIFEST}, got one that is not listed")


def is_whole(files: Mapping[str, bytes]) -> bool:
    """Return whether `files` (contents by name) are exactly those in the part's manifest, with the same checksums."""
    try:
        sums = json.loads(files[MANIFEST])
    except (KeyError, ValueError):
        return False
    others = {name: content for name, content in files.items() if name != MANIFEST}
    plain = all(Path(name).name == name for name in others)
    return plain and sums == {name: hashlib.sha256(content).hexdigest() for name, content in others.items()}


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
