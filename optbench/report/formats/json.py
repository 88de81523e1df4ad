"""The records of a document as JSON. Numbers are not rounded. NaN becomes null; infinities become "inf" and "-inf"."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from optbench.errors import CONTROL
from optbench.report.document import Report

VERSION = 1
"""The version of the format, increased when a key or column is removed or changes its meaning."""


def render(document: Report) -> str:
    """Render the document's records by key, after the name and version of the format."""
    tree = {"format": document.name, "version": VERSION, **{found.key: found.tree() for found in document.records}}
    text = json.dumps(plain(tree), indent=2, ensure_ascii=False, allow_nan=False)
    # Everything that a terminal might interpret, or that is not a character, is escaped.
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text) + "\n"


def plain(value: Any) -> Any:
    """Convert a value to one that JSON can represent; JSON has no NaN or infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
