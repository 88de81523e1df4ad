"""`optbench init`: write files to start from."""

from __future__ import annotations

import importlib.resources
import shlex
from pathlib import Path

from optbench.cli.output import results
from optbench.errors import StoreError, UsageError

FILES = ("mine.py", "suite.yaml")


def init(folder: Path) -> int:
    """Write a plug-in file and a suite that uses it into a folder, creating it if necessary.

    Raises:
        UsageError: one of the files exists, or the folder cannot be created.
        StoreError: a file cannot be written.
    """
    templates = importlib.resources.files("optbench") / "templates"
    if there := [name for name in FILES if (folder / name).exists()]:
        raise UsageError(f"{folder / there[0]}: this file exists; expected a folder without {' or '.join(FILES)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: expected a folder, or a path where one can be created: {error.strerror}") from None
    for name in FILES:
        try:
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write((templates / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise StoreError(f"{folder / name}: cannot write: {error.strerror}") from None
    plugin, suite = (shlex.quote(str(folder / name)) for name in FILES)
    plugin = plugin if plugin.startswith(("/", ".")) else f"./{plugin}"
    with results() as console:
        for line in (
            f"{plugin}: an optimizer, a model and a metric to replace with yours",
            f"{suite}: a suite that compares your optimizer with known ones",
            "",
            "Next:",
            f"  optbench check {plugin}:Mine",
            f"  optbench run {suite}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0
