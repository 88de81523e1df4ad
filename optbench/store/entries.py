"""A check of the entries of a run directory: only regular files and folders inside it are read or written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import StoreError

DEPTH = 3
"""Maximum depth at which a run has files, e.g. `parts/<cohort>/trials.parquet`."""
FOLDERS = ("parts", "interim", "checkpoints", "damaged", "plugins")
SUFFIXES = (".json", ".yaml", ".parquet", ".lock")
"""Suffixes of top-level files that are read or written; other files are ignored."""


def check_entries(path: Path) -> None:
    """Raise StoreError if a run directory contains a special file, a broken link, or a link out of the directory.

    path: the run directory, which can itself be a link.
    """
    inside = Path(os.path.realpath(path))
    for entry in _entries(path, DEPTH):
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except FileNotFoundError:
            continue  # a run being written: the entry has just been renamed
        place = Path(entry.path)
        if stat.S_ISLNK(mode):
            target = Path(os.path.realpath(entry.path))
            if not target.is_relative_to(inside) or not target.exists():
                found = "a link that is broken or leaves the run directory (only that directory itself can be a link)"
                raise StoreError(f"{place}: expected a file or folder, got {found}")
        elif not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise StoreError(f"{place}: expected a file or folder, got a special file")


def _entries(folder: Path, depth: int) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:
        return  # a folder that cannot be listed is reported when it is read
    for entry in entries:
        if depth == DEPTH and entry.name not in FOLDERS and not entry.name.endswith(SUFFIXES):
            continue
        if entry.name.startswith(".#"):
            continue  # lock files of editors
        yield entry
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), depth - 1)
