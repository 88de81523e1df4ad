"""The source of a target: a file and the modules that it imports from its folder.

Imports are found by parsing the code, so imports within functions are included.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.errors import OptbenchError

NEVER_NEIGHBOURS = sys.stdlib_module_names | {"torch", "numpy", "optbench"}
"""Modules that files with the same names in a user's folder do not shadow."""
DIGITS = 16
"""Number of hexadecimal digits in a source hash."""
NEEDED = "expected module:Class or ./file.py:Class"
IN_MEMORY = "python"
"""The part before the colon in the target of an object that cannot be imported."""
TEXT = "text-file:"
"""Prefix of the target of a user's text. No module name starts with it, because module names contain no hyphen."""


class TargetError(OptbenchError):
    """A target that cannot be imported or read, or whose module lacks the attribute."""


@dataclass(frozen=True)
class Source:
    """The source of a target, as it was read.

    Attributes:
        folder: the absolute path to which file names are relative.
        main: the file that the target names.
        files: content by name (`mine.py`, `parts/steps.py`), including `main`.
        is_installed: whether the source belongs to an installed package rather than to the user.
    """

    folder: Path
    main: str
    files: Mapping[str, bytes]
    is_installed: bool = False

    @functools.cached_property
    def hash(self) -> str:
        """The hash of the names and contents of all files. It does not depend on the location of the folder."""
        text = "".join(f"{name}\0{checksum}\n" for name, checksum in sorted(self.sums.items()))
        return hashlib.sha256(f"{self.main}\n{text}".encode()).hexdigest()[:DIGITS]

    @functools.cached_property
    def sums(self) -> dict[str, str]:
        """The SHA-256 hash of each file, by name."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}

    @property
    def path(self) -> Path:
        return self.folder / self.main

    def has_module(self, top: str, importer: str) -> bool:
        """Return whether `import top` in the file `importer` refers to a file of this source."""
        if top in NEVER_NEIGHBOURS or importer == f"{top}.py":
            return False  # in `lion.py`, `import lion` refers to the package `lion`, not to the file itself
        return f"{top}.py" in self.files or any(name.startswith(f"{top}/") for name in self.files)


def split(target: str) -> tuple[str, str]:
    """Split a target at the last colon into a module or file and an attribute.

    For an object in memory or a text, the first part is the complete target.

    Raises:
        TargetError: one of the two parts is missing.
    """
    if is_text(target):
        return target, ""
    where, _, attribute = target.rpartition(":")
    if not where or not attribute:
        raise TargetError(f"{target}: {NEEDED}")
    return (target if where == IN_MEMORY else where), attribute


def is_file(where: str) -> bool:
    return where.endswith(".py") and not is_text(where)


def check_names_attribute(target: str) -> None:
    """Raise TargetError if a target is a file without an attribute, e.g. `./mine.py`.

    The message lists the public classes and functions that the file defines. The file is parsed, not executed.
    """
    if not is_file(target):
        return
    try:
        body = ast.parse(Path(target).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        body = []
    named = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    public = [name for name in named if not name.startswith("_")]
    which = f" ({', '.join(public)})" if public else ""
    raise TargetError(f"{target}: expected {target}:NAME, a class or function in that file{which}, got no NAME")


def is_text(where: str) -> bool:
    return where.startswith(TEXT)


def read_file(where: str, folders: Sequence[Path] = (), target: str | None = None) -> Source:
    """Read a file and its neighbours. A relative path is looked up in `folders`, then in the working directory.

    target: the target to name in error messages.

    Raises:
        TargetError: there is no such file, or it cannot be read.
    """
    # As with a script that is run through a link, neighbours are those of the link's target.
    path = Path(os.path.realpath(_found(where, folders, target or where)))
    try:
        return read_folder(path.parent, path.name)
    except OSError as error:
        raise TargetError(f"{target or where}: cannot read {path}: {error.strerror or error}") from error


def read_text_file(target: str, folders: Sequence[Path] = ()) -> Source:
    """Read a text, which is looked up as in `read_file`. target: `TEXT` followed by the path of the text.

    Raises:
        TargetError: there is no such file, it cannot be read, or its name contains a backslash.
    """
    where = target.removeprefix(TEXT)
    path = _found(where, folders, where)
    if "\\" in path.name:  # the name of a copy in a run must be valid on every system
        raise TargetError(f"{where}: expected a name without a backslash")
    try:
        return Source(path.parent, path.name, {path.name: path.read_bytes()})
    except OSError as error:
        raise TargetError(f"{where}: cannot read {path}: {error.strerror or error}") from error


def _found(where: str, folders: Sequence[Path], named: str) -> Path:
    """Return the absolute path of a file. A relative path is looked up in `folders`, then in the working directory.

    Raises TargetError if there is no such file. named: the target to name in the message.
    """
    candidates = [Path(os.path.abspath(folder / where)) for folder in (*folders, Path())]  # noqa: PTH100
    if (path := next(filter(_is_regular, candidates), None)) is not None:
        return path
    looked = f", neither in {folders[0]} nor in the working directory" if folders and where[:1] != "/" else ""
    raise TargetError(f"{named}: there is no file {Path(where)}{looked}")


_is_regular = os.path.isfile
"""Return whether a path is a file; unlike `Path.is_file`, return False if the file system rejects a long name."""


def read_folder(folder: Path, main: str) -> Source:
    """Read `main` and its neighbours in a folder, skipping unreadable neighbours.

    Raises:
        OSError: `main` is unreadable.
    """
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
    """Yield the modules to which a file's imports may refer, each as the parts of a path relative to the folder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # execution will report the error
    package = tuple(file.split("/")[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package) + 1:
                continue  # outside the folder
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
    """Yield the files in `folder` that importing a module executes, including those of its parent packages."""
    for end in range(1, len(module) + 1):
        name = "/".join(module[:end])
        package = f"{name}/__init__.py"
        if _is_regular(folder / package):
            yield package
        elif _is_regular(folder / f"{name}.py"):
            yield f"{name}.py"
