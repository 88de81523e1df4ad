"""The error family: every error a user can cause, and the exit code it leads to.

An error says where it is, what was needed, what came, and the nearest valid thing. The command line
prints `str(error)` on standard error and leaves with `error.exit_code`; anything outside this family is a bug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Line breaks, escape sequences, changes of direction, halves of characters: a name must not act in any format."""


def escaped(text: str) -> str:
    """`text` with line breaks and control characters escaped: it stays one line, and acts on no terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def spoken(error: BaseException) -> str:
    """`str(error)`, which an exception of a user's may refuse."""
    try:
        return str(error)
    except Exception:
        return ""


class OptbenchError(Exception):
    """Base of all errors meant for the user's eyes: one or two lines, no traceback.

    Each argument is one line of the message, whatever names from files and directories are in it.
    """

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(_shortened(escaped(str(line))) for line in self.args)


LONGEST_LINE = 1000
"""Characters. A name may have thousands, and what is wrong with it stands at either end."""


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 3 :]}"


class UsageError(OptbenchError):
    """A wrong flag, argument or setting on the command line."""


class SuiteError(OptbenchError):
    """A suite file that cannot be understood; the message starts with `file:line:column:`."""


class DataError(OptbenchError):
    """A dataset that is not there, or whose files are not what they should be."""


class DeviceError(OptbenchError):
    """A device that this machine or this build of PyTorch does not have."""


class WorkerError(OptbenchError):
    """Workers that cannot be started, or must not train for a run."""


class OptimizerError(OptbenchError):
    """An optimizer that cannot be imported, is not an optimizer, or refuses its hyper-parameters."""


class KindError(OptbenchError):
    """A model, dataset or task sequence that cannot be imported, or does not keep its contract."""


class StoreError(OptbenchError):
    """A run directory that cannot be written, or cannot be read as one."""


class ComparisonError(OptbenchError):
    """Runs, or sides of one, that cannot be compared."""

    exit_code = 4


class NothingMeasuredError(OptbenchError):
    """There is no result to speak of."""

    exit_code = 4


MANY_NAMES = 20
"""Beside a good guess, a longer list of valid names than this only hides it."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None when nothing resembles it."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None


def hint(name: object, valid: Iterable[str]) -> str:
    """`; did you mean 'adam'?`, or nothing where no valid name resembles it."""
    guess = nearest(name, valid) if isinstance(name, str) else None
    return f"; did you mean '{guess}'?" if guess else ""


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """`unknown optimizer 'adamm'; did you mean 'adam'? (valid: adam, sgd)`."""
    names = sorted(valid)
    meant = hint(name, names)
    listed = "" if meant and len(names) > MANY_NAMES else f" (valid: {', '.join(names) or 'none'})"
    return f"unknown {what} '{name}'{meant}{listed}"
