"""What is installed: every package of the tree, and what lies in it besides code."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_of_the_tree_is_installed() -> None:
    # Listed by hand, since setuptools cannot both search the tree and take `optbench.suites` from the top of it.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {file.parent for file in (ROOT / "optbench").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(settings["packages"]) == sorted(found | {"optbench.suites"})
