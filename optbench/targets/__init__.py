"""Targets, which name objects in users' code: finding the objects, and hashing their sources.

A target is `module:attribute`, `./file.py:attribute`, or `python:name` for an object passed to a run from Python. The
target of a user's text is `text-file:` followed by its path. Texts are read, hashed and kept in the same way as code,
but are never executed.

A file and its neighbours (modules in its folder that it imports, directly or indirectly) are read once and executed
from memory, so that the hash covers exactly the code that runs, and edits during a run have no effect. Every state of a
file is executed once per process, in its own package. Therefore, neighbours with the same name in two folders are
different modules, as are the versions of a neighbour before and after an edit.

Importing this package does not import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from optbench.targets.executing import PACKAGE, execute, importing, said
from optbench.targets.modules import check_unchanged, find_attribute, import_module, read_module, starting_processes
from optbench.targets.objects import InMemory, Objects, is_object, lost
from optbench.targets.source import (
    DIGITS,
    TEXT,
    Source,
    TargetError,
    is_file,
    is_text,
    read_file,
    read_text_file,
    split,
)

__all__ = [
    "PACKAGE",
    "TEXT",
    "Objects",
    "Source",
    "TargetError",
    "importing",
    "is_file",
    "is_object",
    "is_text",
    "load",
    "read_file",
    "read_source",
    "read_text",
    "read_text_file",
    "said",
    "source_hash",
    "split",
    "starting_processes",
    "use",
    "using",
]

# Sources of targets in this context, set for a run so that all of its processes use the same sources.
_SOURCES: ContextVar[Mapping[str, Source]] = ContextVar("sources", default=types.MappingProxyType({}))


@contextlib.contextmanager
def using(sources: Mapping[str, Source]) -> Iterator[None]:
    """Resolve targets to these sources, in addition to earlier ones, until the end of the block.

    sources: the source of each target, by the part of the target before the colon.
    """
    token = _SOURCES.set({**_SOURCES.get(), **sources})
    try:
        yield
    finally:
        _SOURCES.reset(token)


def use(sources: Mapping[str, Source]) -> None:
    """Resolve targets to these sources from now on. They replace earlier ones."""
    _SOURCES.set(sources)


def load(target: str) -> Any:
    """Return the object that a target names, executing the module that contains the object if necessary.

    Raises:
        TargetError: there is no such file, module or object, it cannot be imported, or it has no such attribute.
    """
    where, _ = split(target)
    known = _SOURCES.get().get(where)
    if is_object(where):
        if not isinstance(known, InMemory):
            raise lost(target)
        return known.load(target)
    if is_file(where):
        source = known or read_file(where, target=target)
        with importing(str(Path(where)), target):
            module = execute(source)
    else:
        module = import_module(where, target)
        check_unchanged(target, known)
    return find_attribute(module, target)


def read_text(path: str) -> bytes:
    """Return the content of a user's text. During a run, this is the content at the start of the run.

    Raises:
        TargetError: there is no such file, or it cannot be read.
    """
    source = _SOURCES.get().get(f"{TEXT}{path}") or read_text_file(f"{TEXT}{path}")
    return source.files[source.main]


def read_source(target: str, folders: Sequence[Path] = ()) -> Source | None:
    """Read the source of a target; return None for a module without Python source, e.g. a built-in one.

    Files are not executed, but modules are imported.

    folders: the folders in which a relative path is looked up before the working directory.

    Raises:
        TargetError: there is no such file or object, a file cannot be read, or a module cannot be imported.
    """
    where, _ = split(target)
    if is_text(where):
        return read_text_file(where, folders)
    if is_object(where):
        if (known := _SOURCES.get().get(where)) is None:
            raise lost(target)
        return known
    return read_file(where, folders, target) if is_file(where) else read_module(target)


def source_hash(targets: Iterable[str]) -> str | None:
    """Return the combined hash of the targets' sources; None if there are none. Raises the errors of `read_source`."""
    known = _SOURCES.get()
    found = {source.hash for t in targets if (source := known.get(split(t)[0]) or read_source(t)) is not None}
    if len(found) > 1:
        return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:DIGITS]
    return found.pop() if found else None
