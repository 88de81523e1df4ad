"""Imports of modules with Python's own import system."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from optbench.errors import hint
from optbench.targets.executing import importing, on_its_own
from optbench.targets.source import Source, TargetError, read_folder, split

_APPENDED: list[str] = []
"""Paths that have been appended to `sys.path`."""


_STARTING = threading.Lock()


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Prevent processes started by this thread in the block from importing the user's modules.

    Spawned processes would otherwise execute the main module again, so that scripts would need a `__main__` guard. In
    an editable installation, where optbench comes last in `sys.path`, they would also import a file named `optbench.py`
    in the working directory instead of the package.
    """
    prepare, thread = spawn.get_preparation_data, threading.get_ident()

    def prepared(name: str) -> dict[str, Any]:
        found = prepare(name)
        if threading.get_ident() == thread:
            found["sys_path"] = [place for place in found["sys_path"] if place not in _APPENDED]
            for key in ("init_main_from_name", "init_main_from_path"):
                found.pop(key, None)
        return found

    with _STARTING:
        spawn.get_preparation_data = prepared
        try:
            yield
        finally:
            spawn.get_preparation_data = prepare


def import_module(name: str, target: str) -> Any:
    """Import a module, from the working directory if Python does not find it elsewhere.

    Raises:
        TargetError: the module cannot be imported.
    """
    if sys.modules.get(name) is not None:
        return sys.modules[name]
    with importing(name, target), on_its_own():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            here = os.getcwd()  # noqa: PTH109
            if error.name != name.partition(".")[0] or here in sys.path:
                raise
            # Appended, so that files in the working directory do not shadow installed packages.
            sys.path.append(here)
            _APPENDED.append(here)
            importlib.invalidate_caches()
            return importlib.import_module(name)


def find_attribute(module: Any, target: str) -> Any:
    """Return the attribute of `module` that `target` names; raise TargetError if there is none."""
    where, attribute = split(target)
    names = getattr(module, "__dict__", {})
    found = names.get(attribute)
    if found is None:
        with importing(where, target), on_its_own():  # a module may import its attributes lazily
            found = getattr(module, attribute, None)
    if found is None:
        known = [name for name, value in names.items() if isinstance(name, str) and callable(value)]
        raise TargetError(f"{target}: {where} has no '{attribute}'{hint(attribute, known)}")
    return found


def read_module(target: str) -> Source | None:
    """Import the module that a target names and return its source; None if no Python source is found.

    Raises:
        TargetError: the module cannot be imported, or its source cannot be read.
    """
    name, _ = split(target)
    module = import_module(name, target)
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    path = Path(file)
    if _is_installed(path):
        try:
            own = Path(inspect.getfile(find_attribute(module, target)))
            return Source(own.parent, own.name, {own.name: own.read_bytes()}, is_installed=True)
        except (OSError, TypeError):
            return None
    depth = name.count(".") + (path.name == "__init__.py")
    root = path.parents[min(depth, len(path.parents) - 1)]
    try:
        return read_folder(root, path.relative_to(root).as_posix())
    except OSError as error:
        raise TargetError(f"{target}: cannot read {path}: {error.strerror or error}") from error


def _is_installed(path: Path) -> bool:
    """Return whether a file belongs to Python or an installed package; editable installs count as the user's files."""
    homes = {sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(home)) for home in homes) or "site-packages" in real.parts


_CHECKED: set[tuple[str, str]] = set()


def check_unchanged(target: str, expected: Source | None) -> None:
    """Raise TargetError if a module has changed since the run began. Each source is checked only once per process."""
    where, _ = split(target)
    if expected is None or expected.is_installed or (where, expected.hash) in _CHECKED:
        return
    _CHECKED.add((where, expected.hash))
    now = read_module(target)
    if now is None or now.hash != expected.hash:
        raise TargetError(f"{target}: {expected.path} has changed since the run began")
