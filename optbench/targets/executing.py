"""Execution of users' files from memory; each state of a file is executed once per process."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optbench.errors import spoken
from optbench.targets.source import Source, TargetError

PACKAGE = "optbench_plugin_"
"""Prefix of the name of the package in which a user's file and its neighbours are executed."""


@contextlib.contextmanager
def importing(what: str, target: str) -> Iterator[None]:
    """Convert exceptions raised by user code in the block to TargetErrors, and redirect its output to standard error.

    Raises:
        TargetError: the code raised an exception, or tried to end the program.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        raise TargetError(f"{target}: cannot import {what}: {said(error)}") from error


@contextlib.contextmanager
def on_its_own() -> Iterator[None]:
    """Seed the global generators during an import, and restore the process-wide settings that the import changes.

    A module is imported only once per process, so a changed setting would affect one trial but not the next.
    """
    from optbench.isolation import isolated, seed_generators  # late, because it imports torch

    with isolated():
        seed_generators(0)
        yield


def said(error: BaseException) -> str:
    """Return an error in one line: its class and the first line of its message, e.g. `ValueError: no data`."""
    lines = spoken(error).strip().splitlines()
    if isinstance(error, SystemExit):
        return f"it ends the program with exit({lines[0] if lines else ''})"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


_MODULES: dict[tuple[Path, str], Any] = {}
_PACKAGES: dict[str, Source] = {}


def execute(source: Source) -> Any:
    """Return the module of a source's main file. Each state of a source is executed at most once per process."""
    key = (source.folder, source.hash)
    if key not in _MODULES:
        place = hashlib.sha256(f"{source.folder}\n{source.hash}".encode(errors="surrogateescape")).hexdigest()[:12]
        stem = Path(source.main).stem
        package = f"{PACKAGE}{place}"
        spec = importlib.machinery.ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(source.folder)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
        _PACKAGES[package] = source
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())  # before the finder that would read the folder again
        try:
            with on_its_own():
                _MODULES[key] = importlib.import_module(f"{package}.{stem if stem.isidentifier() else MAIN}")
        except BaseException:
            for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
                del sys.modules[name]
            raise
    return _MODULES[key]


MAIN = "main_file"
"""The module name of a file whose own name is not an identifier, e.g. `my-optimizer.py`."""


class _Finder(importlib.abc.MetaPathFinder):
    """An import finder for the modules of loaded sources."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, inside = name.partition(".")
        source = _PACKAGES.get(package)
        if source is None or not inside:
            return None
        place = inside.replace(".", "/")
        main = Path(source.main).stem
        for file in (f"{place}/__init__.py", f"{place}.py", *([source.main] if inside in (MAIN, main) else [])):
            if file in source.files:
                where = str(source.folder / file)
                spec = importlib.machinery.ModuleSpec(name, _Loader(source, package, file), origin=where)
                spec.has_location = True
                if file.endswith("/__init__.py"):
                    spec.submodule_search_locations = [str(source.folder / place)]
                return spec
        if any(file.startswith(f"{place}/") for file in source.files):  # a folder without `__init__.py`
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(source.folder / place)]
            return spec
        return None


class _Loader(importlib.abc.InspectLoader):
    def __init__(self, source: Source, package: str, file: str) -> None:
        self._source, self._package, self._file = source, package, file

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._source.files[self._file])

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self._source.files[self._file], str(self._source.folder / self._file))

    def is_package(self, fullname: str) -> bool:
        return self._file.endswith("/__init__.py")

    def exec_module(self, module: types.ModuleType) -> None:
        # Makes `import helper` find the neighbour, also inside the file's functions, without affecting other code.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        """Import as `__import__` does, but search the neighbours of the importing file first."""
        top = name.partition(".")[0]
        if level or not self._source.has_module(top, self._file):
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = builtins.__import__(f"{self._package}.{name}", globals, locals, fromlist, 0)
        return found if fromlist else sys.modules[f"{self._package}.{top}"]
