"""The folder that an export is written to: new or empty, and left as it was where the export fails."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import UsageError
from optbench.store.files import reported

REPORT = "report.html"
"""Lies in every export."""


def check_folder(path: Path) -> None:
    """Raises UsageError unless `path` is a folder with nothing in it, or nothing is there yet."""
    try:
        found = next(path.iterdir(), None)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{path}: expected a new or empty folder, got a file") from None
    except OSError as error:
        raise UsageError(f"{path}: expected a new or empty folder: {error.strerror}") from None
    if found is not None:
        raise UsageError(f"{path}: expected a new or empty folder, got one with {found.name} in it")


@contextlib.contextmanager
def filled(path: Path) -> Iterator[None]:
    """Make the folder for the block to fill; where the block raises, remove what it wrote and the folders made for it.

    Raises:
        UsageError: as `check_folder`.
        StoreError: it cannot be written.
    """
    check_folder(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with reported(path):
            path.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            for entry in path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
