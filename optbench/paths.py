"""Paths given by a user, on the command line or in an environment variable."""

from __future__ import annotations

import os
from pathlib import Path

from optbench.errors import UsageError


def user_path(path: str | os.PathLike[str], where: str) -> Path:
    """Return the path with a leading `~` or `~name` replaced by the home directory.

    A shell replaces `~` only at the beginning of an unquoted word, and so not in `--runs-dir=~/x`.

    where: the beginning of an error message, such as `--runs-dir`.

    Raises:
        UsageError: the path is empty or is not UTF-8, or there is no such home directory.
    """
    text = os.fspath(path)
    if not text:
        raise UsageError(f"{where}: expected a path, got nothing")
    found = Path(text)
    if text.startswith("~"):
        home = found.parts[0]
        try:
            if home == "~" and os.environ.get("HOME") == "":
                raise RuntimeError  # an empty HOME would make `~/x` the folder x at the root
            found = found.expanduser()
        except RuntimeError:
            raise UsageError(f"{where} {text}: there is no home directory {home}; give a full path") from None
    # Names are written to JSON, tables and reports, all of which are UTF-8.
    if not is_utf8(os.fspath(found)):
        raise UsageError(f"{where} {found}: expected a path in UTF-8, got other bytes")
    return found


def is_utf8(text: str) -> bool:
    """Return whether `text` can be encoded as UTF-8; an argument with undecodable bytes cannot be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
