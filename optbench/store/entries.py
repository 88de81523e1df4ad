"""What lies in a run directory: files and folders of its own, so that nothing else is read, written or waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import StoreError

DEPTH = 3
"""So deep do files of a run lie: `parts/<cohort>/trials.parquet`."""


def check_entries(path: Path) -> None:
    """Raises StoreError where something in the run directory `path` is a link that leads out of it, or a pipe or such.

    The directory itself may be a link: where a run lies is its owner's business.
    """
    inside = os.path.realpath(path)
    for entry in _entries(inside, DEPTH):
        place = path / os.path.relpath(entry.path, inside)
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not target.is_relative_to(inside) or not target.exists():
                raise StoreError(
                    f"{place}: a link that leads nowhere, or out of the run directory; needs the file itself"
                )
        elif not entry.is_dir() and not entry.is_file():
            raise StoreError(f"{place}: neither a file nor a folder")


def _entries(folder: str, depth: int) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:
        return  # what cannot be listed is reported where it is read
    for entry in entries:
        yield entry
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path, depth - 1)
