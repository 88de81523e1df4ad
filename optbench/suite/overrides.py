"""`--set key.path=value`: changes to a suite file from the command line, before it is validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optbench.errors import SuiteError, UsageError, escaped
from optbench.suite.document import MAX_DEPTH, Document, KeyPath, Place, is_optimizer_list, parse_yaml


@dataclass(frozen=True)
class Override:
    """One `--set` option: the segments of its key, not yet matched with the file, and its value."""

    text: str
    segments: tuple[str, ...]
    value: Any

    @property
    def place(self) -> Place:
        return Place(f"--set {escaped(self.text)}")

    def error(self, message: str) -> UsageError:
        return UsageError(f"{self.place}: {message}")


def parse_override(text: str) -> Override:
    """Parse `key.path=value`, where the value is YAML; raise UsageError if the text is invalid."""
    key, equals, value = text.partition("=")
    bare = Override(text, tuple(key.strip().split(".")), None)
    if not equals:
        raise bare.error("expected key.path=value")
    if not all(bare.segments):
        raise bare.error("the key has an empty part; expected key.path=value")
    if len(bare.segments) > MAX_DEPTH:
        raise bare.error(f"the key has more than {MAX_DEPTH} parts")
    if not value.strip():
        raise bare.error("the value is empty; write null for no value, or '' for empty text")
    try:
        return Override(text, bare.segments, parse_yaml(value, "value").value)
    except SuiteError as error:
        raise bare.error(str(error).removeprefix("value:1:1: ")) from None  # the location is the whole override


def apply_override(document: Document, override: Override) -> None:
    """Apply an override to the document in place, and record the override as the location of the value.

    Missing mappings are created; validation decides whether their keys are valid.

    Raises:
        UsageError: the key leads through a scalar or beyond the end of a list.
    """
    here = document.value
    path: KeyPath = ()
    rest = override.segments
    made: KeyPath | None = None
    while True:
        key, rest = _step(here, rest, override, path)
        path = (*path, key)
        new = isinstance(here, dict) and key not in here
        made = path if new and made is None else made
        if not rest:
            break
        if new or here[key] is None:
            made = path if made is None else made
            here[key] = {}
            document.implied.add(path)
        elif is_optimizer_list(path, here[key]):
            here[key] = {name: {} for name in here[key]}
        here = here[key]
    here[key] = override.value
    document.override(path if made is None else made, override.place)


def _step(here: Any, rest: tuple[str, ...], override: Override, path: KeyPath) -> tuple[str | int, tuple[str, ...]]:
    """Return the key or index with which the path continues in `here`, and the remaining segments."""
    shown = ".".join(str(part) for part in path)
    if isinstance(here, dict):
        # Names may contain dots: the longest existing one matches.
        for end in range(len(rest), 0, -1):
            if (key := ".".join(rest[:end])) in here:
                return key, rest[end:]
        return rest[0], rest[1:]
    if isinstance(here, list):
        indices = [str(index) for index in range(len(here))]
        if rest[0] not in indices:
            valid = f"from 0 to {len(here) - 1}" if here else "(but the list is empty)"
            raise override.error(f"'{shown}' is a list: expected an index {valid}, got '{escaped(rest[0])}'")
        return int(rest[0]), rest[1:]
    raise override.error(f"'{shown}' is neither a mapping nor a list; it has no '{escaped(rest[0])}'")
