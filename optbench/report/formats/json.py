"""The records of a document as JSON. Numbers are not rounded; undefined is null, infinite the text `inf` or `-inf`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from optbench.errors import CONTROL
from optbench.report.document import Report

VERSION = 1
"""Goes up when a key or a column changes its meaning or goes."""


def render(document: Report) -> str:
    """The document's records by their keys, after the name of the format and its version."""
    tree = {"format": document.name, "version": VERSION, **{found.key: found.tree() for found in document.records}}
    text = json.dumps(plain(tree), indent=2, ensure_ascii=False, allow_nan=False)
    # Escaped in JSON's own way: what it leaves as it is may act on a terminal, or be no character at all.
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
