"""What an exception of somebody else's code says: its class, its message, and where it was raised if it has none."""

from __future__ import annotations

import traceback
from pathlib import Path

LONGEST = 300
"""Characters of a message; a longer one is data that was printed, a tensor for example."""
_LIBRARIES = ("torch", "numpy", "optbench")


def said(error: BaseException) -> str:
    """`ValueError: its message` on one line; without a message the line of code that raised it."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # an exception of a user's may not know what to say
        message = ""
    kind = type(error).__name__
    if not message:
        return f"{kind} {place}" if (place := raised_at(error)) else kind
    return f"{kind}: {message}" if len(message) <= LONGEST else f"{kind}: {message[:LONGEST]} ..."


def raised_at(error: BaseException) -> str | None:
    """`in step, mine.py:12: assert p.grad is not None`: the last line that is not of PyTorch, NumPy or optbench."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _of_library(Path(f.filename))]
    if not frames:
        return None
    last = frames[-1]
    return f"in {last.name}, {_shown(Path(last.filename))}:{last.lineno}" + (f": {last.line}" if last.line else "")


def _of_library(path: Path) -> bool:
    if path.is_relative_to(Path(__file__).parents[1]):
        return True
    parts = path.parts
    return "site-packages" in parts and parts[parts.index("site-packages") + 1] in _LIBRARIES


def _shown(path: Path) -> Path:
    if "site-packages" in path.parts:
        return Path(*path.parts[path.parts.index("site-packages") + 1 :])
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
