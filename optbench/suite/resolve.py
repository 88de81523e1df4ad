"""Resolution of a suite's name to its file."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterable
from pathlib import Path

from optbench.errors import UsageError, escaped, hint
from optbench.paths import user_path

_SUFFIXES = (".yaml", ".yml")


def shipped_suites() -> dict[str, Path]:
    """Return the files of the shipped suites by name, sorted by name."""
    return dict(sorted(_installed().items() or _in_checkout().items()))


def _installed() -> dict[str, Path]:
    try:
        folder = importlib.resources.files("optbench.suites")
    except ModuleNotFoundError:
        return {}
    # In a zipped installation, files have no paths, so suites are not available by name.
    return _named(file for file in folder.iterdir() if isinstance(file, Path))


def _in_checkout() -> dict[str, Path]:
    """Return the suites of a checkout, which are in a folder next to the package; empty if this is not a checkout."""
    root = Path(__file__).resolve().parents[2]
    # `site-packages/suites` would belong to another package.
    folder = root / "suites"
    return _named(folder.iterdir()) if folder.is_dir() and (root / "pyproject.toml").is_file() else {}


def _named(files: Iterable[Path]) -> dict[str, Path]:
    return {file.stem: file for file in files if file.suffix in _SUFFIXES}


def resolve_suite_path(name_or_path: str, folder: Path = Path()) -> Path:
    """Return the file for `optbench run SUITE`, or for `extends: SUITE` in a file of `folder`.

    A bare name refers to a shipped suite first, so that a file or folder of that name in the working directory does not
    shadow it; everything else is a path.

    Raises:
        UsageError: neither a shipped suite nor a file has this name.
    """
    if not name_or_path:
        raise UsageError("expected a suite's name or path, got empty text; see `optbench list suites`")
    path = folder / user_path(name_or_path, "suite")
    shipped = shipped_suites()
    if name_or_path in shipped:
        return shipped[name_or_path]
    if os.path.exists(path):  # noqa: PTH110 (False for a name that is too long, too)
        return path
    bare = path.stem if path.suffix in _SUFFIXES else path.name
    what = f"no such file '{escaped(name_or_path)}', and no shipped suite of that name{hint(bare, shipped)}"
    raise UsageError(f"{what} (shipped: {', '.join(shipped) or 'none'})")
