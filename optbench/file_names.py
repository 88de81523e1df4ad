"""File names made from users' words: names of experiments, models, optimizers, variants.

Different words give different names, also on file systems that ignore case; names stay readable, and short enough for
every file system.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

LONGEST = 120
"""Bytes of a name. File systems allow 255, some encrypted ones 143; temporary files and suffixes need some of them."""
MARK = "@"
"""Stands before the digest of words that alone do not make a name; no other name contains it."""
DIGITS = 16
"""Hexadecimal digits of a digest."""

# Lower case only: file systems that ignore case take `SGD` and `sgd` for one name.
_PLAIN = re.compile(r"[a-z0-9.+=,\[\]-]+(?:_+[a-z0-9.+=,\[\]-]+)*")
_UNSAFE = re.compile(r"[^A-Za-z0-9.+=,\[\]_-]+")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")
"""Devices on Windows, whatever their suffix."""


def file_name(parts: Sequence[str], underscores: int = 2) -> str:
    """Return the name, without a suffix, of the file that belongs to `parts`: `small__net__sgd__default__seed=0`.

    Parts are joined by more underscores in a row than occur in any of them, and by at least `underscores`. Parts that
    cannot be told from the name (capitals, separators, other characters, underscores at an end, too long together) are
    followed by a digest: `small__MLP__sgd@0f3c...`.

    The name has at most `LONGEST` bytes, ASCII without separators, and does not begin with a dot. Two sequences of
    parts share a name, up to case, only if they share a digest of 64 bits.
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
    """Return `parts` joined, safe as the beginning of a file name, in at most `longest` bytes; not injective.

    Where there is too little room, the longest parts are cut, so that all of them remain recognisable.
    """
    shown = [_UNSAFE.sub("-", part).strip("-._") or "-" for part in parts]
    room = max(len(shown), longest - len(joint) * max(0, len(shown) - 1))
    # Short parts leave their room to the longer ones.
    for place, i in enumerate(sorted(range(len(shown)), key=lambda i: len(shown[i]))):
        shown[i] = shown[i][: room // (len(shown) - place)]
        room -= len(shown[i])
    return joint.join(shown)[:longest].lstrip("-._") or "x"
