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
def test_a_sweep_is_compared_with_its_trials_one_by_one() -> None:
    words = [BENCHMARKS / "sweep.py", "--optimizers", "sgd", "--repeats", "1", "--steps", "2"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("sgd ")]
    assert len(rows) == 5
    assert sum("aim 60" in row for row in rows) == 1
