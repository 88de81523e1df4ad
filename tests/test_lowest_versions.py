"""The lower bounds in pyproject.toml are valid: optbench works with the lowest version of every dependency."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("optimizers", "tune", "tensorboard")
"""Extras for users, which CI tests; `dev` is for developers."""
BOUND = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")


def lowest() -> Iterator[str]:
    """Return every requirement at its lower bound, as constraints for pip."""
    for requirement in [*PROJECT["dependencies"], *(r for e in EXTRAS for r in PROJECT["optional-dependencies"][e])]:
        found = BOUND.fullmatch(requirement)
        assert found, f"{requirement}: expected a lower bound and no other"
        name, version = found.groups()
        yield f"{name}=={version}"


def test_every_requirement_has_a_lower_bound_that_the_tested_versions_satisfy() -> None:
    def key(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    def parts(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {key(name): version for name, version in tested.items()}
    for name, version in (line.split("==") for line in lowest()):
        assert parts(version) <= parts(pinned[key(name)]), name


@pytest.mark.slow
def test_the_lowest_versions_run_the_smoke_suite(tmp_path: Path) -> None:
    """This downloads gigabytes if torch of that version is not cached, and takes several minutes."""
    constraints = tmp_path / "lowest.txt"
    constraints.write_text("\n".join(lowest()), encoding="utf-8")
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{ROOT}[{','.join(EXTRAS)}]"]
    subprocess.run(install, check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    installed = {found["name"].lower().replace("_", "-"): found["version"] for found in json.loads(listed.stdout)}
    for line in lowest():
        name, version = line.split("==")
        assert installed[name.lower()].startswith(version), line

    # The other process must not inherit the module search path of this one.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for words in (
        "run smoke --name low",
        "run --resume low",
        "report low",
        "report low -o low.html",
        "report low -o low.tex --figures figures",
        "report low --format json",
        "export low --to tensorboard logs",
        "compare low:sgd low:shampoo",
        "check muon",
        "check lion",
        "list optimizers",
        "list runs",
        "tune smoke --name tuned --seeds 1 --sampler tpe --trials 2 --experiment permuted-mnist --optimizer sgd",
        "run --help",
        "--version",
    ):
        done = subprocess.run(
            [environment / "bin" / "optbench", *words.split()],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"optbench {words}: {done.stderr}"
        assert done.stdout or "-o" in words.split() or words.startswith("export"), words
        assert "Warning" not in done.stderr, f"optbench {words}: {done.stderr}"
    refused = subprocess.run(
        [environment / "bin" / "optbench", "compare", "low"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2, "an argument is missing"
