"""Description of the line of a user's code that raised an error."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from optbench.errors import escaped

_OURS = Path(__file__).parents[1]
_LIBRARIES = ("torch", "numpy", "optbench")


def raised_at(error: BaseException, *, own: bool = False) -> str | None:
    """Describe the last line of user code in a traceback, e.g. `by Mine.step in mine.py:12: assert p.grad is not None`.

    If the traceback contains no user code, describe its last line outside optbench, or return None if `own` is True.
    Also return None if all lines are in optbench.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    chosen = [place for place in frames if not _of_library(place[0].f_code.co_filename)]
    if not chosen and not own:
        chosen = [place for place in frames if not Path(place[0].f_code.co_filename).is_relative_to(_OURS)]
    if not chosen:
        return None
    frame, number = chosen[-1]
    line = traceback.FrameSummary(frame.f_code.co_filename, number, frame.f_code.co_name).line
    told = f"by {frame.f_code.co_qualname} in {_shown(Path(frame.f_code.co_filename))}:{number}"
    return escaped(f"{told}: {line}" if line else told)


def _of_library(file: str) -> bool:
    """Return whether a file belongs to Python, PyTorch, NumPy or optbench."""
    path = Path(file)
    if path.is_relative_to(_OURS) or file.startswith("<"):
        return True
    parts = path.parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1] in _LIBRARIES
    return path.is_relative_to(Path(re.__file__).parents[1])


def _shown(path: Path) -> Path:
    """Return a path relative to `site-packages` or to the working directory, if possible."""
    if "site-packages" in path.parts:
        return Path(*path.parts[path.parts.index("site-packages") + 1 :])
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path
