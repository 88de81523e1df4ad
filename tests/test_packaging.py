"""Every package of the source tree is installed, with its data files."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_package_of_the_tree_is_installed() -> None:
    # Packages are listed by hand, since setuptools cannot both search the tree and map `optbench.suites` to `suites/`.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {file.parent for file in (ROOT / "optbench").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(settings["packages"]) == sorted(found | {"optbench.suites"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_built_package_runs_the_smoke_suite_in_a_clean_environment(kind: str, tmp_path: Path) -> None:
    """This installs torch again and takes minutes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def done(*words: str | Path) -> str:
        found = subprocess.run(words, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr[-2000:]
        return found.stdout

    for name in ("builder", "user"):
        done(sys.executable, "-m", "venv", name)
    pip = ("-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    done(tmp_path / "builder/bin/python", *pip, "build")
    done(tmp_path / "builder/bin/python", "-m", "build", f"--{kind}", "--outdir", tmp_path / "dist", ROOT)
    (built,) = (tmp_path / "dist").iterdir()
    assert built.suffix == {"wheel": ".whl", "sdist": ".gz"}[kind]
    done(tmp_path / "user/bin/python", *pip, built)
    assert "shampoo" in done(tmp_path / "user/bin/optbench", "run", "smoke", "--name", "built", "--quiet")
    assert (tmp_path / "runs/built/trials.parquet").exists()
