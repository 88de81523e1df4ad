"""From the name of a user's code to the object and a hash of its source.

A name is `module:attribute`, `./file.py:attribute`, or `python:name` for an object that Python has given to a run. A
text of the user's, which nothing executes, is read, hashed and kept likewise, under `text-file:` and its path.

A file and its neighbours (modules in its folder that it imports, and that those import) are read once and executed from
what was read: what is hashed is what runs, and an edit during a run changes nothing in it. Every state of a file is
executed once in a process, in a package of its own, so that neighbours of equal names in two folders, or before and
after an edit, are different modules.

Imports no torch.
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

# What targets mean in this context: set for a run, so that the processes of it agree.
_SOURCES: ContextVar[Mapping[str, Source]] = ContextVar("sources", default=types.MappingProxyType({}))


@contextlib.contextmanager
def using(sources: Mapping[str, Source]) -> Iterator[None]:
    """Let targets mean these sources, by what stands before their colon, in the block, besides those before."""
    token = _SOURCES.set({**_SOURCES.get(), **sources})
    try:
        yield
    finally:
        _SOURCES.reset(token)


def use(sources: Mapping[str, Source]) -> None:
    """Let targets mean these sources from now on."""
    _SOURCES.set(sources)


def load(target: str) -> Any:
    """Return the object that a target names; its module is executed if it has not been, in its present state.

    Raises:
        TargetError: there is no such file or module, it cannot be imported, or it has no such attribute.
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
    """Return the content of a user's text, as it was when the run began.

    Raises:
        TargetError: there is no such file, or it cannot be read.
    """
    source = _SOURCES.get().get(f"{TEXT}{path}") or read_text_file(f"{TEXT}{path}")
    return source.files[source.main]


def read_source(target: str, folders: Sequence[Path] = ()) -> Source | None:
    """Read what is behind a target: of a file without executing it, of a module that is installed by importing it.

    folders: where a relative file is looked for before the working directory.

    Returns None for a module whose source cannot be found: it is built in, say, or there is none.

    Raises:
        TargetError: there is no such file or object, or an installed module cannot be imported.
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
    """Return the hash of the source of targets together, None if there is none. Raises as `read_source`."""
    known = _SOURCES.get()
    found = {source.hash for t in targets if (source := known.get(split(t)[0]) or read_source(t)) is not None}
    if len(found) > 1:
        return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:DIGITS]
    return found.pop() if found else None
