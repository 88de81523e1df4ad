"""Damaged files of a run directory, which are moved to `damaged/` before the run is resumed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from optbench.errors import StoreError
from optbench.store import pairs_table
from optbench.store.contents import ContentError
from optbench.store.files import reported
from optbench.store.interim import read_members
from optbench.store.parts import INTERIM, PARTS, check_part, find_parts
from optbench.store.read import read_file, read_table
from optbench.store.tables import ALL_TABLES, ON_REQUEST

DAMAGED = "damaged"


def set_damaged_aside(path: Path) -> list[str]:
    """Move damaged files of a run directory to `damaged/`, so that the affected trials are trained again.

    Return a description of each damaged file. A damaged part affects only its own cohort. Merged tables depend on each
    other, so if one of them is damaged, all are moved.

    Raises:
        StoreError: a file cannot be moved, or contains impossible values although its checksum is correct.
    """
    found = []
    for folder in (PARTS, INTERIM):
        for part in find_parts(path / folder):
            try:
                check_part(part)
                if folder == INTERIM:
                    read_members(part)
            except StoreError as error:
                _set_aside(path, [part])
                found.append(f"{error}; the cohort is trained again")
    tops = [file for name in (*ALL_TABLES, pairs_table.NAME) if (file := path / f"{name}.parquet").exists()]
    try:
        for name in ALL_TABLES:
            file = path / f"{name}.parquet"
            # `trials` is written last, so the other tables exist if it does. A report could do without some of them,
            # but a resumed run cannot.
            if name not in ON_REQUEST and not file.exists() and (path / "trials.parquet").exists():
                raise StoreError(f"{file}: missing next to trials.parquet")
            read_table(file, name)
        read_file(path / f"{pairs_table.NAME}.parquet", pairs_table.SCHEMA)
    except ContentError:
        raise  # not damaged on disk: retraining would not repair it and might destroy good results
    except StoreError as error:
        _set_aside(path, tops)
        found.append(f"{error}; all trials in the merged tables are trained again")
    return found


def _set_aside(path: Path, files: Sequence[Path]) -> None:
    folder = path / DAMAGED
    with reported(folder):
        folder.mkdir(exist_ok=True)
        for file in files:
            place = next(p for i in itertools.count() if not (p := folder / f"{file.name}.{i}").exists())
            file.rename(place)
