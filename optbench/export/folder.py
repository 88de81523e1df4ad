"""The folder to which an export is written: new or empty, and restored to that state if the export fails."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from optbench.errors import UsageError
from optbench.store.files import reported

REPORT = "report.html"
"""The name of the report's file, which every export contains."""


def check_folder(path: Path) -> None:
    """Raise UsageError unless `path` is an empty folder or does not exist."""
    try:
        found = next(path.iterdir(), None)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{path}: expected a new or empty folder, got a file") from None
    except OSError as error:
        raise UsageError(f"{path}: expected a new or empty folder: {error.strerror}") from None
    if found is not None:
        raise UsageError(f"{path}: expected a new or empty folder, got one that contains {found.name}")


@contextlib.contextmanager
def filled(path: Path) -> Iterator[None]:
    """Create a folder, with missing parent folders, for the block to fill.

    If the block fails, the folder is emptied, and the folders created by this function are removed.

    Raises:
        UsageError: as in `check_folder`.
        StoreError: the folder cannot be written.
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
