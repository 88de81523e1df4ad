"""From the name of a user's code, `module:attribute` or `./file.py:attribute`, to the object and a hash of its source.

A file and its neighbours (modules in its folder that it imports, and that those import) are read once and executed from
what was read: what is hashed is what runs, and an edit during a run changes nothing in it. Every state of a file is
executed once in a process, in a package of its own, so that neighbours of equal names in two folders, or before and
after an edit, are different modules.

Imports no torch.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import stat
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.errors import OptbenchError, nearest

NEVER_NEIGHBOURS = sys.stdlib_module_names | {"torch", "numpy", "optbench"}
"""Modules that a file in a user's folder does not stand in for, whatever its name."""
PACKAGE = "optbench_plugin_"
"""How the name of the package begins in which a user's file and its neighbours are executed."""
DIGITS = 16
"""Hexadecimal digits of a source hash."""
NEEDED = "needs module:Class or ./file.py:Class"


class TargetError(OptbenchError):
    """A target that cannot be imported, or has no such attribute."""


@dataclass(frozen=True)
class Source:
    """The code behind a target, as it was read.

    Attributes:
        folder: absolute; what the names of the files are relative to.
        main: the file that the target names.
        files: content by name (`mine.py`, `parts/steps.py`), `main` included.
        is_installed: whether it is of an installed package rather than the user's own.
    """

    folder: Path
    main: str
    files: Mapping[str, bytes]
    is_installed: bool = False

    @functools.cached_property
    def hash(self) -> str:
        """Of names and contents, wherever the folder lies."""
        text = "".join(f"{name}\0{checksum}\n" for name, checksum in sorted(self.sums.items()))
        return hashlib.sha256(f"{self.main}\n{text}".encode()).hexdigest()[:DIGITS]

    @functools.cached_property
    def sums(self) -> dict[str, str]:
        """SHA-256 of each file, by name."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}

    @property
    def path(self) -> Path:
        return self.folder / self.main

    def has_module(self, top: str, importer: str) -> bool:
        """Return whether `import top` in the file `importer` means a file of this source."""
        if top in NEVER_NEIGHBOURS or importer == f"{top}.py":
            return False  # `lion.py` means the package `lion` by it, not itself
        return f"{top}.py" in self.files or any(name.startswith(f"{top}/") for name in self.files)


# What targets mean in this context: set for a run, so that the processes of it agree.
_SOURCES: ContextVar[Mapping[str, Source]] = ContextVar("sources", default=types.MappingProxyType({}))


@contextlib.contextmanager
def using(sources: Mapping[str, Source]) -> Iterator[None]:
    """Let targets mean these sources, by what stands before their colon, in the block."""
    token = _SOURCES.set(sources)
    try:
        yield
    finally:
        _SOURCES.reset(token)


def use(sources: Mapping[str, Source]) -> None:
    """Let targets mean these sources from now on."""
    _SOURCES.set(sources)


def split(target: str) -> tuple[str, str]:
    """Return what is before the last colon, a module or a file, and the attribute after it.

    Raises:
        TargetError: one of them is missing.
    """
    where, _, attribute = target.rpartition(":")
    if not where or not attribute:
        raise TargetError(f"{target}: {NEEDED}")
    return where, attribute


def is_file(where: str) -> bool:
    return where.endswith(".py")


def load(target: str) -> Any:
    """Return the object that a target names; its module is executed if it has not been, in its present state.

    Raises:
        TargetError: there is no such file or module, it cannot be imported, or it has no such attribute.
    """
    where, attribute = split(target)
    if is_file(where):
        source = _SOURCES.get().get(where) or read_file(where, target=target)
        with importing(str(Path(where)), target):
            module = _execute(source)
    else:
        module = _import(where, target)
        _check_unchanged(where, target)
    names = getattr(module, "__dict__", {})
    found = names.get(attribute)
    if found is None:
        with importing(where, target), _on_its_own():  # a module may import what it names when it is asked for it
            found = getattr(module, attribute, None)
    if found is None:
        classes = [name for name, value in names.items() if isinstance(name, str) and inspect.isclass(value)]
        guess = nearest(attribute, classes)
        raise TargetError(f"{target}: {where} has no '{attribute}'" + (f"; did you mean '{guess}'?" if guess else ""))
    return found


def read_source(target: str, folders: Sequence[Path] = ()) -> Source | None:
    """Read the code behind a target: of a file without executing it, of a module that is installed by importing it.

    folders: where a relative file is looked for before the working directory.

    Returns None for a module whose source cannot be found: it is built in, say, or there is none.

    Raises:
        TargetError: there is no such file, or an installed module cannot be imported.
    """
    where, _ = split(target)
    return read_file(where, folders, target) if is_file(where) else _read_module(where, target)


def source_hash(targets: Iterable[str]) -> str | None:
    """Return the hash of the source of one or several targets together; None where there is none.

    Raises:
        TargetError: as `read_source`.
    """
    known = _SOURCES.get()
    found = {source.hash for t in targets if (source := known.get(split(t)[0]) or read_source(t)) is not None}
    if len(found) > 1:
        return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:DIGITS]
    return found.pop() if found else None


def read_file(where: str, folders: Sequence[Path] = (), target: str | None = None) -> Source:
    """Read a file and its neighbours; a relative one is looked for in `folders`, then in the working directory.

    target: for the message.

    Raises:
        TargetError: there is no such file, or it cannot be read.
    """
    candidates = [Path(os.path.abspath(folder / where)) for folder in (*folders, Path())]  # noqa: PTH100
    path = next(filter(_is_regular, candidates), None)
    if path is None:
        looked = f", neither in {folders[0]} nor in the working directory" if folders and where[:1] != "/" else ""
        raise TargetError(f"{target or where}: there is no file {Path(where)}{looked}")
    path = Path(
        os.path.realpath(path)
    )  # as in a script that is called by a link, neighbours are those of the file itself
    try:
        return _read(path.parent, path.name)
    except OSError as error:
        raise TargetError(f"{target or where}: cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def importing(what: str, target: str) -> Iterator[None]:
    """Report whatever a user's code raises while it is imported; what it prints is no result.

    Raises:
        TargetError: it raised something, or tried to end the program.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        raise TargetError(f"{target}: cannot import {what}: {said(error)}") from error


@contextlib.contextmanager
def _on_its_own() -> Iterator[None]:
    """Let a module draw the same numbers in every process while it is imported, and put back the settings it changes.

    A module is imported once in a process: if one trial found its settings changed, the next would not.
    """
    from optbench.isolation import isolated, seed_generators  # late, because it imports torch

    with isolated():
        seed_generators(0)
        yield


def said(error: BaseException) -> str:
    """Return `ValueError: the first line of its message`; exceptions of a user's may raise in saying what they are."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        lines = []
    if isinstance(error, SystemExit):
        return f"it ends the program with exit({lines[0] if lines else ''})"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# Reading: a file and what it imports, found in the text, so that an import within a function counts as well.


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # also a name too long for the file system, or with a NUL in it
        return False


def _read(folder: Path, main: str) -> Source:
    """Raises OSError where `main` cannot be read; neighbours that cannot are no neighbours."""
    files: dict[str, bytes] = {}
    above = main.split("/")[:-1]
    packages = ["/".join([*above[: end + 1], "__init__.py"]) for end in range(len(above))]
    left = [main, *(name for name in packages if _is_regular(folder / name))]
    while left:
        name = left.pop()
        if name in files:
            continue
        try:
            files[name] = (folder / name).read_bytes()
        except OSError:
            if name == main:
                raise
            continue
        left += [file for module in _imported(name, files[name]) for file in _files(folder, module)]
    return Source(folder, main, files)


def _imported(file: str, content: bytes) -> Iterator[tuple[str, ...]]:
    """Yield the modules, relative to the folder, that the import statements of a file may mean."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # executing it will say what is wrong
    package = tuple(file.split("/")[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package) + 1:
                continue  # out of the folder
            start = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*start, *(node.module.split(".") if node.module else ()))
            names = [base, *((*base, alias.name) for alias in node.names)]
            if node.level:
                yield from names
                continue
        else:
            continue
        yield from (name for name in names if name[0] not in NEVER_NEIGHBOURS and file != f"{name[0]}.py")


def _files(folder: Path, module: tuple[str, ...]) -> Iterator[str]:
    """Yield the files in `folder` that importing a module there executes, its packages' own included."""
    for end in range(1, len(module) + 1):
        name = "/".join(module[:end])
        package = f"{name}/__init__.py"
        if _is_regular(folder / package):
            yield package
        elif _is_regular(folder / f"{name}.py"):
            yield f"{name}.py"


# Executing: in memory, from what was read.


_MODULES: dict[tuple[Path, str], Any] = {}
_PACKAGES: dict[str, Source] = {}


def _execute(source: Source) -> Any:
    """Return the module of a source's main file, executed once for each state of it."""
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
            sys.meta_path.insert(0, _Finder())  # before the one that would read the folder anew
        try:
            with _on_its_own():
                _MODULES[key] = importlib.import_module(f"{package}.{stem if stem.isidentifier() else MAIN}")
        except BaseException:
            for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
                del sys.modules[name]
            raise
    return _MODULES[key]


MAIN = "main_file"
"""What the module of a file is called whose own name cannot be imported: `my-optimizer.py`."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of sources that were read."""

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
        # `import helper` within the file's functions, too, finds its neighbour, and no other code ever does.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(self, name: str, *arguments: Any, **named: Any) -> Any:
        """`__import__(name, globals, locals, fromlist, level)`, which knows the neighbours."""
        bound = _IMPORT.bind(name, *arguments, **named)
        bound.apply_defaults()
        values = bound.arguments
        top = name.partition(".")[0]
        if values["level"] or not self._source.has_module(top, self._file):
            return builtins.__import__(name, *arguments, **named)
        found = builtins.__import__(
            f"{self._package}.{name}", values["globals"], values["locals"], values["fromlist"], 0
        )
        return found if values["fromlist"] else sys.modules[f"{self._package}.{top}"]


def _signature(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> None:
    """The signature of `__import__`."""


_IMPORT = inspect.signature(_signature)


# Modules, which Python imports in its own way.


_APPENDED: list[str] = []
"""What was added to `sys.path`."""


@contextlib.contextmanager
def without_working_directory() -> Iterator[None]:
    """Start processes in the block: they import optbench before any file of the working directory of that name.

    In an editable installation optbench itself comes after everything in `sys.path`.
    """
    before = list(sys.path)
    sys.path[:] = [place for place in before if place not in _APPENDED]
    try:
        yield
    finally:
        sys.path[:] = before


def _import(name: str, target: str) -> Any:
    if sys.modules.get(name) is not None:
        return sys.modules[name]
    with importing(name, target), _on_its_own():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            here = os.getcwd()  # noqa: PTH109
            if error.name != name.partition(".")[0] or here in sys.path:
                raise
            # Last, so that no file of the working directory stands in for an installed package.
            sys.path.append(here)
            _APPENDED.append(here)
            importlib.invalidate_caches()
            return importlib.import_module(name)


def _read_module(name: str, target: str) -> Source | None:
    module = _import(name, target)
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    path = Path(file)
    if _is_installed(path):
        try:
            own = Path(inspect.getfile(load(target)))
            return Source(own.parent, own.name, {own.name: own.read_bytes()}, is_installed=True)
        except (OSError, TypeError):
            return None
    depth = name.count(".") + (path.name == "__init__.py")
    root = path.parents[min(depth, len(path.parents) - 1)]
    try:
        return _read(root, path.relative_to(root).as_posix())
    except OSError as error:
        raise TargetError(f"{target}: cannot read {path}: {error.strerror or error}") from error


def _is_installed(path: Path) -> bool:
    """Whether a file is of Python's own or an installed package, rather than a user's (an editable install is)."""
    homes = {sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(home)) for home in homes) or "site-packages" in real.parts


_CHECKED: set[tuple[str, str]] = set()


def _check_unchanged(where: str, target: str) -> None:
    """Raise TargetError where a module is not what it was when the run began; looked at once in a process."""
    expected = _SOURCES.get().get(where)
    if expected is None or expected.is_installed or (where, expected.hash) in _CHECKED:
        return
    _CHECKED.add((where, expected.hash))
    now = _read_module(where, target)
    if now is None or now.hash != expected.hash:
        raise TargetError(f"{target}: {expected.path} was changed while the run was going on; --resume says what to do")
