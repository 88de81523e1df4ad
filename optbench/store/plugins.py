"""Copies of the user's code that a run used, in `plugins/`, and their entries in `run.json`.

A run's `suite.yaml` contains the name of a file as the user wrote it, so that the suite is the same in any directory.
In a run directory, this name refers to the copy, so that a repeated run uses the original code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from optbench.errors import StoreError
from optbench.file_names import label
from optbench.targets import Source

FOLDER = "plugins"
KEY = "plugins"


@dataclass(frozen=True)
class Plugin:
    """One of the user's sources, as recorded by a run.

    Attributes:
        target: the name of the source in a suite, without the attribute, e.g. `./mine.py` or `mine`.
        origin: the file that `target` refers to, from which the source was read.
        main: the name of this file within its folder and within the copy.
        copy: the folder of the copy, relative to the run directory; None for an installed package.
        source_hash: the hash of all files.
        files: SHA-256 of each file, by name within its folder.
    """

    target: str
    origin: str
    main: str
    copy: str | None
    source_hash: str
    files: Mapping[str, str]


def plugins_of(record: Mapping[str, Any]) -> dict[str, Plugin]:
    """Return the newest source of each target in a run's record, by target.

    record: the checked content of `run.json`.
    """
    return {entry["target"]: Plugin(**entry) for entry in record.get(KEY) or ()}


def is_plugin_record(value: Any) -> bool:
    """Return whether a value has the form of an entry from `entries`, without paths outside the run directory."""
    try:
        plugin = Plugin(**value)
        texts = [plugin.target, plugin.origin, plugin.main, plugin.source_hash, *plugin.files, *plugin.files.values()]
        inside = [plugin.copy or FOLDER, *(f"{FOLDER}/{name}" for name in plugin.files)]
    except (TypeError, AttributeError):
        return False
    return all(isinstance(text, str) for text in texts) and all(map(_is_inside, inside)) and plugin.main in plugin.files


def _is_inside(place: object) -> bool:
    if not isinstance(place, str) or "\\" in place or "\0" in place:
        return False
    path = PurePosixPath(place)
    return path.parts[:1] == (FOLDER,) and ".." not in path.parts


def entries(
    sources: Mapping[str, Source], before: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the sources' entries for `run.json`, and the contents of their copies by path in the run directory.

    For a new run, files from the folder of the first source that is not installed are copied to `plugins/` itself. All
    other files are copied to subfolders, except those of installed sources, which are not copied.

    before: the entries that the run already has; empty for a new run.
    """
    found: list[dict[str, Any]] = []
    copies: dict[str, bytes] = {}
    root = None if before else next((s.folder for s in sources.values() if not s.is_installed), None)
    for target, source in sources.items():
        copy = None
        if not source.is_installed:
            own = f"{label([Path(source.main).stem], '.')}-{source.hash}"
            copy = FOLDER if source.folder == root else f"{FOLDER}/{own}"
            copies |= {f"{copy}/{name}": content for name, content in source.files.items()}
        found.append(asdict(Plugin(target, os.fspath(source.path), source.main, copy, source.hash, dict(source.sums))))
    return found, copies


def read_copy(run: Path, plugin: Plugin) -> Source:
    """Read a run's own copy of a source.

    Raises:
        StoreError: there is no copy, or a file is missing, is a link out of the run directory, or has changed since it
            was copied.
    """
    if plugin.copy is None:
        raise StoreError(f"{run}: no copy of {plugin.target}, because it was part of an installed package")
    folder = Path(os.path.abspath(run / plugin.copy))  # noqa: PTH100
    files = {}
    for name in plugin.files:
        file = folder / name
        if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(run)):
            raise StoreError(f"{file}: expected a file, got a link out of the run directory")
        try:
            files[name] = file.read_bytes()
        except OSError as error:
            raise StoreError(f"{file}: unreadable: {error.strerror}; the run used it for {plugin.target}") from None
    source = Source(folder, plugin.main, files)
    if wrong := [name for name, checksum in plugin.files.items() if source.sums[name] != checksum]:
        raise StoreError(f"{folder / wrong[0]}: changed since the run: its checksum differs")
    return source
