"""What is damaged in a run directory goes to `damaged/`, before the run is gone on with."""

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
    """Move what is damaged in a run directory to `damaged/`, so that it is trained again; what it was, in words.

    A damaged part costs its own cohort; of the merged tables, which belong together, one that is damaged costs what
    all of them hold.

    Raises:
        StoreError: a file cannot be moved, or says what cannot be although it is as it was written.
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
                found.append(f"{error}; its cohort is trained again")
    tops = [file for name in (*ALL_TABLES, pairs_table.NAME) if (file := path / f"{name}.parquet").exists()]
    try:
        for name in ALL_TABLES:
            file = path / f"{name}.parquet"
            # All of them are there, or none: `trials` is written last. Only a report may do without one.
            if name not in ON_REQUEST and not file.exists() and (path / "trials.parquet").exists():
                raise StoreError(f"{file}: missing, beside trials.parquet")
            read_table(file, name)
        read_file(path / f"{pairs_table.NAME}.parquet", pairs_table.SCHEMA)
    except ContentError:
        raise  # not the disk's doing: to train it again would not mend it, and may cost what is good
    except StoreError as error:
        _set_aside(path, tops)
        found.append(f"{error}; what was merged is trained again")
    return found


def _set_aside(path: Path, files: Sequence[Path]) -> None:
    folder = path / DAMAGED
    with reported(folder):
        folder.mkdir(exist_ok=True)
        for file in files:
            place = next(p for i in itertools.count() if not (p := folder / f"{file.name}.{i}").exists())
            file.rename(place)
