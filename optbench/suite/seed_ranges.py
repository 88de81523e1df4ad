"""Suggestions of the valid form for ranges of seeds, which neither suites nor `--seeds` accept."""

from __future__ import annotations

import re

_RANGE = re.compile(r"\[?\s*(\d{1,18})\s*(?:-|–|\.\.\.?|:|to)\s*(\d{1,18})\s*\]?", re.ASCII)
_LISTED = 12
"""Maximum number of seeds to list; a longer list would hide the rest of the message."""


def instead_of_range(text: str, brackets: bool) -> str | None:
    """Return the valid form of a range such as `0-4`, `0..4` or `3 to 7`, both ends included; None for other text.

    brackets: whether to write lists in brackets, as in a suite.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    if first > last:
        return None
    if first == 0:
        return f"for the seeds 0 to {last}, write {last + 1}"
    count = last - first + 1
    listed = (
        list(map(str, range(first, last + 1))) if count <= _LISTED else [str(first), str(first + 1), "...", str(last)]
    )
    written = ", ".join(listed) if brackets else ",".join(listed)
    ending = "," if count == 1 and not brackets else ""
    return f"for the seeds {first} to {last}, write {f'[{written}]' if brackets else written + ending}"
