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
