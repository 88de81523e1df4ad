"""`extends: NAME_OR_PATH` in a suite file: the file's content is merged over another suite.

Mappings merge key by key; lists and scalars replace the base's value. `null` removes a key of the base, unless null is
a valid value there (`early_stopping: null` means no early stopping). `!!null` is always the value null. A base
can itself extend another suite. Relative paths of code and texts in a base are relative to the base's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optbench.data.catalog import TEXT_FILES
from optbench.errors import SuiteError, UsageError, unknown
from optbench.suite.document import (
    MAX_BYTES,
    MAX_VALUES,
    Document,
    ExplicitNull,
    KeyPath,
    Place,
    decode,
    is_optimizer_list,
    parse_yaml,
)
from optbench.suite.faults import admits_null, shown_path
from optbench.suite.removals import remove_references
from optbench.suite.resolve import resolve_suite_path
from optbench.suite.schema import Suite
from optbench.targets import TEXT, is_file

KEY = "extends"
NAMED = (("experiments",), ("optimizers",), ("claims",))
"""Paths of mappings whose keys are names chosen by the user; the `models` of experiments are handled separately."""


def read_document(path: Path) -> Document:
    """Read a suite file and the files that it extends, merged into one document without `extends`.

    Raises:
        SuiteError: a file is missing, unreadable, too large or invalid, or extends itself.
    """
    chain: list[tuple[Path, Document]] = []
    place: Place | None = None
    size = count = 0
    while True:
        if any(os.path.realpath(path) == os.path.realpath(before) for before, _ in chain):
            names = " -> ".join(str(one) for one in (*(before for before, _ in chain), path))
            raise SuiteError(f"{place}: {KEY}: expected a chain of suites that ends, got {names}")
        data = _read(path, place, MAX_BYTES - size)
        document = parse_yaml(decode(data, str(path)), str(path))
        size, count = size + len(data), count + len(document.values)
        if count > MAX_VALUES:
            raise SuiteError(f"{place}: {KEY}: too large: more than {MAX_VALUES} values in all files")
        if not isinstance(document.value, dict):
            raise SuiteError(f"{document.value_place(())}: expected a suite, a mapping with keys such as 'name'")
        chain.append((path, document))
        if KEY not in document.value:
            break
        place = document.value_place((KEY,))
        path = _base(document.value.pop(KEY), place, path.parent)
    below, document = chain.pop()
    for above, own in reversed(chain):
        document.value = rebased(document.value, below.parent, above.parent)
        below, document = above, _Merger(document, own).result
    return document


def difference(raw: Mapping[str, Any], base: Suite, meant: Suite) -> dict[str, Any]:
    """Return the content of a suite file that extends `base` and results in `meant`: only the differences.

    Removed keys have the value None; a null value is `ExplicitNull` where None would remove the key.

    raw: the value of the document from which `base` was loaded.
    """
    set_only, every = meant.model_dump(exclude_unset=True), meant.model_dump()
    return _difference(raw, base.model_dump(exclude_unset=True), set_only, every, ())


def rebased(value: Any, folder: Path, to: Path) -> Any:
    """Return a suite's value with the paths of its code and texts in `folder` rewritten relative to the folder `to`.

    Names of files that are not in `folder` are unchanged: they refer to the working directory.
    """
    if os.path.realpath(folder) == os.path.realpath(to):
        return value
    if isinstance(value, dict):
        texts = value.get("files") if value.get("kind") == TEXT_FILES else None
        moved = {name: _moved_text(path, folder, to) for name, path in texts.items()} if isinstance(texts, dict) else {}
        found = {key: rebased(item, folder, to) for key, item in value.items()}
        return found | {"files": moved} if moved else found
    if isinstance(value, list):
        return [rebased(item, folder, to) for item in value]
    where, _, attribute = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    file = _meant(where, folder) if is_file(where) and not Path(where).is_absolute() else None
    return f"{relative(file, to)}:{attribute}" if file is not None else value


def _moved_text(path: Any, folder: Path, to: Path) -> Any:
    file = _meant(path, folder, TEXT) if isinstance(path, str) and not Path(path).is_absolute() else None
    return path if file is None else relative(file, to)


def relative(file: Path, folder: Path) -> str:
    """Return the path of a file relative to a folder, with a leading dot: `./mine.py`, `../mine.py`."""
    # Resolved paths, because `..` after a symbolic link leads to the parent of the link's target.
    found = os.path.relpath(Path(os.path.realpath(file.parent), file.name), os.path.realpath(folder))
    return found if found.startswith("..") else f"./{found}"


def _read(path: Path, place: Place | None, most: int) -> bytes:
    """Read one file of at most `most` bytes.

    place: location of the `extends` that names the file; None for the file that the user named.
    """
    where = str(path) if place is None else f"{place}: {KEY}: {path}"
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise SuiteError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise SuiteError(f"{where}: expected a suite file, got a directory") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise SuiteError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most:
        what = "a suite" if place is None else "all files together"
        raise SuiteError(
            f"{where if place else f'{path}:1:1'}: larger than {MAX_BYTES // 1024} KiB, the limit for {what}"
        )
    return data


def _base(name: Any, place: Place, folder: Path) -> Path:
    if not isinstance(name, str) or not name:
        raise SuiteError(
            f"{place}: {KEY}: expected a shipped suite or the path of a suite file, got {json.dumps(name)}"
        )
    try:
        return resolve_suite_path(name, folder)
    except UsageError as error:
        raise SuiteError(f"{place}: {KEY}: {error}") from None


def _meant(where: str, folder: Path, prefix: str = "") -> Path | None:
    """Return the file that a relative name in a suite in `folder` refers to; None if there is no such file.

    In the suite of a run, the name refers to the copy kept by the run, if there is one.

    prefix: the text that precedes the name in the run's record.
    """
    try:
        for entry in json.loads((folder / "run.json").read_text(encoding="utf-8")).get("plugins") or ():
            if entry["target"] == f"{prefix}{where}" and entry["copy"]:
                return folder / f"{entry['copy']}/{entry['main']}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # not a run, or a damaged one
    try:
        return file if (file := folder / where).is_file() else None
    except (OSError, ValueError):
        return None


class _Merger:
    """The merge of one document over another, in which every key and value keeps its location."""

    def __init__(self, base: Document, own: Document) -> None:
        self.base, self.own = base, own
        remove_references(base, own, self.removes)
        sources = (*base.sources, *own.sources)
        self.result = Document(None, sources, removed=base.removed, followed=base.followed)
        self.result.value = self.merge((), base.value, own.value)

    def merge(self, path: KeyPath, old: Any, new: Any) -> Any:
        if is_optimizer_list(path, old) and isinstance(new, dict):
            for i, name in enumerate(old):
                self.base.keys[(*path, name)] = self.base.values[(*path, name)] = self.base.values[(*path, i)]
            old = {name: {} for name in old}
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return self.take(self.own, path, new)
        self.result.values[path] = self.own.values[path]
        merged: dict[str, Any] = {}
        for key in {**old, **new}:
            inner = (*path, key)
            if key in new and new[key] is None and self.removes(inner):
                if key in old or (not path and key in Suite.model_fields):
                    self.result.removed[inner] = self.own.keys[inner]
                    continue
                # Elsewhere, null is valid: an optimizer without overrides, or the value of a hyper-parameter.
                if path in NAMED or (path[:1] == ("experiments",) and path[2:] == ("models",)):
                    where = f"{self.own.keys[inner]}: {shown_path(path)}"
                    raise SuiteError(f"{where}: {unknown('name', key, old)}; null removes a name of the base")
            source = self.own if key in new else self.base
            self.result.keys[inner] = source.keys[inner]
            if key in old and key in new:
                merged[key] = self.merge(inner, old[key], new[key])
            else:
                merged[key] = self.take(source, inner, new[key] if key in new else old[key])
        return merged

    def removes(self, path: KeyPath) -> bool:
        return path not in self.own.explicit_nulls and not admits_null(path)

    def take(self, source: Document, path: KeyPath, value: Any) -> Any:
        """Return a value of `source`, after copying the locations of everything in the value to the result."""
        self.result.values[path] = source.values[path]
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            inner = (*path, key)
            if inner in source.keys:
                self.result.keys[inner] = source.keys[inner]
            self.take(source, inner, item)
        return value


def _difference(
    raw: Mapping[str, Any], base: Mapping[str, Any], meant: Mapping[str, Any], every: Mapping[str, Any], path: KeyPath
) -> dict[str, Any]:
    """Return the mapping that gives `meant` when it is merged over `base`.

    raw: the base as written; only keys in it can be removed. every: `meant` with its defaults.
    """
    found: dict[str, Any] = {}
    for key in {**raw, **meant}:
        inner = (*path, key)
        nullable = admits_null(inner)
        written: Any = raw.get(key)
        if is_optimizer_list(inner, written):
            written = dict.fromkeys(written)
        if key not in meant:
            found[key] = every.get(key) if nullable else None  # null would be a value here, so write the default
        elif key in base and json.dumps(base[key]) == json.dumps(meant[key]):  # distinguishes 1, 1.0 and true
            pass
        elif all(isinstance(value, dict) for value in (written, base.get(key), meant[key])):
            if changed := _difference(written, base[key], meant[key], every[key], inner):
                found[key] = changed
        else:
            found[key] = ExplicitNull() if meant[key] is None and key in raw and not nullable else meant[key]
    return found
