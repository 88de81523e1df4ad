"""The benchmarks run; what they measure is for a quiet machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
def test_throughput_prints_a_row_for_each_way() -> None:
    words = [BENCHMARKS / "throughput.py", "--members", "2", "--rounds", "1", "--seconds", "0.01"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for way in ("engine", "loop", "floor"):
        assert way in done.stdout


@pytest.mark.slow
def test_a_profile_names_operations() -> None:
    words = [BENCHMARKS / "throughput.py", "--members", "2", "--optimizers", "sgd", "--profile"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "aten::mm" in done.stdout


@pytest.mark.slow
def test_ways_to_roots_are_compared() -> None:
    words = [BENCHMARKS / "roots.py", "--members", "1", "--sides", "10", "--rounds", "1"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("10 ")]
    assert [row[2] for row in rows] == ["eigh", "eigh", "newton", "newton", "qr"]
    assert all(float(row[-2]) < 1e-5 for row in rows[:-1])


@pytest.mark.slow
def test_a_suite_is_timed_with_its_memory() -> None:
    words = [
        BENCHMARKS / "suite.py",
        "smoke",
        "--seeds",
        "1",
        "--",
        "--experiment",
        "digit-pairs",
        "--optimizer",
        "sgd",
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 ok" in done.stdout
    assert "MiB" in done.stdout


@pytest.mark.slow
def test_a_sweep_is_compared_with_its_trials_one_by_one() -> None:
    words = [BENCHMARKS / "sweep.py", "--optimizers", "sgd", "--repeats", "1", "--steps", "2"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("sgd ")]
    assert len(rows) == 5
    assert sum("aim 60" in row for row in rows) == 1
