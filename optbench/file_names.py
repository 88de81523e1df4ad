"""File names built from names that users choose for experiments, models, optimizers and variants.

Different sequences of names give different file names, even on case-insensitive file systems. The file names are
readable, and short enough for every file system.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

LONGEST = 120
"""Maximum length in bytes. Most file systems allow 255, and some encrypted ones 143; suffixes add a few bytes."""
MARK = "@"
"""Character before the digest of a file name; file names without a digest do not contain it."""
DIGITS = 16
"""Number of hexadecimal digits in a digest."""

# Lower case only, because `SGD` and `sgd` are the same name on a case-insensitive file system.
_PLAIN = re.compile(r"[a-z0-9.+=,\[\]-]+(?:_+[a-z0-9.+=,\[\]-]+)*")
_UNSAFE = re.compile(r"[^A-Za-z0-9.+=,\[\]_-]+")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")
"""Reserved device names on Windows, with any suffix."""


def file_name(parts: Sequence[str], underscores: int = 2) -> str:
    """Return a file name for `parts`, without a suffix, e.g. `small__net__sgd__default__seed=0`.

    Parts are joined by more consecutive underscores than occur in any of them, and by at least `underscores`. If the
    parts cannot be recovered from the name (because of capitals, separators, other characters, underscores at an end,
    or a name that is too long), a digest is appended: `small__MLP__sgd@0f3c...`.

    The name is ASCII, has at most `LONGEST` bytes, contains no path separator and does not begin with a dot. Two
    different sequences of parts have the same name, ignoring case, only if their 64-bit digests are equal.
    """
    count = max([underscores, *(len(run) + 1 for part in parts for run in re.findall("_+", part))])
    name = ("_" * count).join(parts)
    plain = all(map(_PLAIN.fullmatch, parts)) and name[:1].isalnum() and not _RESERVED.fullmatch(name)
    # With a single part there is no separator to distinguish from underscores inside it.
    if plain and len(name) <= LONGEST and (len(parts) > 1 or count == underscores):
        return name
    digest = hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:DIGITS]
    return f"{label(parts, '_' * underscores, LONGEST - len(MARK) - DIGITS)}{MARK}{digest}"


def label(parts: Sequence[str], joint: str, longest: int = 100) -> str:
    """Join `parts` into a safe prefix for file names, at most `longest` bytes long.

    If the result would be too long, the longest parts are shortened, so that all parts remain recognisable. Different
    parts can give the same result.
    """
    shown = [_UNSAFE.sub("-", part).strip("-._") or "-" for part in parts]
    room = max(len(shown), longest - len(joint) * max(0, len(shown) - 1))
    # Space that short parts do not need goes to the longer ones.
    for place, i in enumerate(sorted(range(len(shown)), key=lambda i: len(shown[i]))):
        shown[i] = shown[i][: room // (len(shown) - place)]
        room -= len(shown[i])
    return joint.join(shown)[:longest].lstrip("-._") or "x"
