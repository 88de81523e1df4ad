"""What lies in a run directory: files and folders of its own, so that nothing else is read, written or waited for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import StoreError

DEPTH = 3
"""So deep do files of a run lie: `parts/<cohort>/trials.parquet`."""
FOLDERS = ("parts", "interim", "checkpoints", "damaged", "plugins")
SUFFIXES = (".json", ".yaml", ".parquet", ".lock")
"""Of the files at the top that are read or written; what else lies there is its owner's business."""


def check_entries(path: Path) -> None:
    """Raises StoreError where a file or folder of the run in the directory `path` is a link that leads out of it, or a
    pipe or such.

    The directory itself may be a link: where a run lies is its owner's business.
    """
    inside = Path(os.path.realpath(path))
    for entry in _entries(path, DEPTH):
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except FileNotFoundError:
            continue  # a run that is being written: it had another name a moment ago
        place = Path(entry.path)
        if stat.S_ISLNK(mode):
            target = Path(os.path.realpath(entry.path))
            if not target.is_relative_to(inside) or not target.exists():
                needed = "needs the file or folder itself; the run directory as a whole may be a link"
                raise StoreError(f"{place}: a link that leads nowhere, or out of the run directory; {needed}")
        elif not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise StoreError(f"{place}: neither a file nor a folder")


def _entries(folder: Path, depth: int) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:
        return  # what cannot be listed is reported where it is read
    for entry in entries:
        if depth == DEPTH and entry.name not in FOLDERS and not entry.name.endswith(SUFFIXES):
            continue
        if entry.name.startswith(".#"):
            continue  # an editor's
        yield entry
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), depth - 1)
