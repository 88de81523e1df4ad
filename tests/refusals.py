"""Checks that the command line refuses bad input with one clear line and the right exit code, and writes nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.errors import CONTROL

PREFIX = "optbench: "


def snapshot(tree: Path) -> dict[str, str]:
    """Return everything under `tree`: files with the hash of their content, links (not followed) with their target."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(tree):
        if "__pycache__" in folders:  # written by Python itself if a user's file imports another
            folders.remove("__pycache__")
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path)] = f"link to {path.readlink()}"
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(path)] = "other"
    return found


def refusal(capsys: pytest.CaptureFixture[str], tree: Path, *words: object, code: int = 2, lines: int = 1) -> str:
    """Run `optbench <words>`, assert that it is refused, and return the lines of the error without the prefix.

    tree: a folder in which nothing may change. lines: the largest number of lines.
    """
    before = snapshot(tree)
    capsys.readouterr()
    got = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert (got, out) == (code, ""), (got, out, err)
    said = err.removesuffix("\n").split("\n")
    assert 1 <= len(said) <= lines, err
    for line in said:
        assert line.startswith(PREFIX), err
        assert not CONTROL.search(line), repr(err)
        assert "internal error" not in line, err
        assert len(line) < 1500, line
    assert "Traceback" not in err
    assert snapshot(tree) == before
    return "\n".join(line.removeprefix(PREFIX) for line in said)
