"""Reading of `run.json`, with checks of its size and of its fields' types, because its source may be untrusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optbench.errors import StoreError
from optbench.metrics.own import is_metric_record
from optbench.store.files import json_value
from optbench.store.plugins import is_plugin_record
from optbench.tasks import Outline

NAME = "run.json"
MAX_BYTES = 256 << 20
"""Maximum size in bytes, far above that of any real record. Most of a record is the list of the trials that were left
at each resumption."""
MAX_WHOLE = 2**63

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_WHOLE


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _outlines(value: Any) -> bool:
    try:
        return isinstance(value, dict) and all(Outline.from_record(facts["tasks"]) for facts in value.values())
    except (TypeError, KeyError, ValueError):
        return False


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


_TEXT = (_or_null(_text), "text")
_MAPPING = (_or_null(_mapping), "a mapping")
_FIELDS: Mapping[str, tuple[Check, str]] = {
    "run": _TEXT,
    "suite": _TEXT,
    "suite_hash": _TEXT,
    "status": _TEXT,
    "created": _TEXT,
    "finished": _TEXT,
    "metrics_version": (_whole, "a whole number"),
    "command": (_or_null(_list_of(_text)), "a list of words"),
    "seeds": (_or_null(_list_of(_whole)), "a list of seeds"),
    "provenance": _MAPPING,
    "provenance.git": _MAPPING,
    "provenance.accelerators": (_or_null(_list_of(_text)), "a list of names"),
    "plugins": (_or_null(_list_of(is_plugin_record)), "a list of the users' files"),
    "experiments": (_or_null(_outlines), "a mapping from experiments to their tasks"),
    "metrics": (_or_null(_list_of(is_metric_record)), "a list of the users' metrics"),
    "resumed": (_list_of(_mapping), "a list of mappings"),
    "resumed.provenance": _MAPPING,
    "merged": (_list_of(_mapping), "a list of mappings"),
    "merged.seeds": (_list_of(_whole), "a list of seeds"),
    "tune": _MAPPING,
}
"""Fields that readers rely on, by path, with a check for values that are present and a description of valid values."""


def read_record(file: Path) -> Any:
    """Read the JSON value of the file.

    Raises:
        StoreError: the file cannot be read, is too large, or is not JSON.
        FileNotFoundError: the file does not exist.
    """
    return json_value(file, MAX_BYTES, NAME)


def check_record(file: Path, record: Mapping[str, Any]) -> None:
    """Raise StoreError if a field that readers rely on has the wrong type."""
    for path, (good, needed) in _FIELDS.items():
        outer, _, key = path.partition(".")
        value = record.get(outer)
        inside = value if isinstance(value, list) else [value]
        found = [one[key] for one in inside if isinstance(one, dict) and key in one] if key else inside
        if outer in record and not all(map(good, found if key else [value])):
            raise StoreError(f"{file}: '{path}': expected {needed}, got {shown(value if not key else found[0])}")


def shown(value: Any) -> str:
    """Return a value as JSON, truncated if long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
