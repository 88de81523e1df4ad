"""The exceptions for errors that a user can cause, with their exit codes.

A message states the location, what was expected, what was found, and the nearest valid name. The command line
prints `str(error)` on standard error and exits with `error.exit_code`; any other exception is a bug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters to escape: control characters (including line breaks), bidirectional marks and lone surrogates."""


def escaped(text: str) -> str:
    """Return `text` as one line, with line breaks and control characters escaped so that terminals ignore them."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def spoken(error: BaseException) -> str:
    """Return `str(error)`, or an empty string if `str` itself fails, as it can for a user's exception class."""
    try:
        return str(error)
    except Exception:
        return ""


class OptbenchError(Exception):
    """Base class of all errors that are shown to the user without a traceback.

    Each argument is one line of the message, in which control characters are escaped.
    """

    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(_shortened(escaped(str(line))) for line in self.args)


LONGEST_LINE = 1000
"""Maximum length of a line, in characters. Longer lines, such as those with long names, are shortened in the middle."""


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 3 :]}"


class UsageError(OptbenchError):
    """An invalid option, argument or setting, on the command line or in a call from Python."""


class SuiteError(OptbenchError):
    """An invalid suite file; the message starts with `file:line:column:`."""


class DataError(OptbenchError):
    """A dataset that is missing or invalid."""


class DeviceError(OptbenchError):
    """A device that is not available on this machine or in this build of PyTorch."""


class WorkerError(OptbenchError):
    """Workers that are lost, cannot be started, or cannot be used for a run."""


class OptimizerError(OptbenchError):
    """An optimizer that cannot be imported, is not an optimizer, or rejects its hyper-parameters."""


class KindError(OptbenchError):
    """A model, dataset, task sequence or metric that cannot be imported or violates its contract."""


class StoreError(OptbenchError):
    """A run that does not exist or cannot be read, or a file or stream that cannot be written."""


class ComparisonError(OptbenchError):
    """Runs, or optimizers of one run, that cannot be compared."""

    exit_code = 4


class NothingMeasuredError(OptbenchError):
    """No trial, or no optimizer in `optbench cost`, produced a result."""

    exit_code = 4


MANY_NAMES = 20
"""Maximum number of valid names listed after a suggestion: a longer list would hide the suggestion."""


def _initials(name: str) -> str | None:
    """Return the initials of a name of several words, e.g. `lr` for `learning_rate`; None for a name of one word."""
    words = [word for word in re.split(r"[_-]", name) if word]
    return "".join(word[0] for word in words) if len(words) > 1 else None


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to `name`, or None if none is similar.

    A name and its initials are similar: `learning_rate` and `lr`, `wd` and `weight_decay`.
    """
    valid = list(valid)
    for other in valid:
        if name == _initials(other) or other == _initials(name):
            return other
    matches = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return matches[0] if matches else None


def hint(name: object, valid: Iterable[str]) -> str:
    """Return a suggestion such as `; did you mean 'adam'?`, or an empty string if no valid name is similar."""
    guess = nearest(name, valid) if isinstance(name, str) else None
    return f"; did you mean '{guess}'?" if guess else ""


def unknown(what: str, name: str, valid: Iterable[str], of: str = "") -> str:
    """Return a message such as `unknown optimizer 'adamm'; did you mean 'adam'? (valid: adam, sgd)`.

    of: what the name belongs to, as in `unknown hyper-parameter 'rate' of sgd`.
    """
    names = sorted(valid)
    meant = hint(name, names)
    listed = "" if meant and len(names) > MANY_NAMES else f" (valid: {', '.join(names) or 'none'})"
    return f"unknown {what} '{name}'{f' of {of}' if of else ''}{meant}{listed}"
