"""Run the cases of `on_simulated_device.py` in processes with a simulated CUDA device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parents[1] / "on_simulated_device.py"
SOON = "suite and smoke"


@pytest.mark.parametrize(
    ("which", "marked"),
    [
        ("not suite and not waits", "not slow"),
        ("waits", "not slow"),
        (SOON, "not slow"),
        pytest.param("not suite", "slow", marks=pytest.mark.slow),
        pytest.param(f"suite and not ({SOON})", "not slow", marks=pytest.mark.slow),
    ],
)
def test_cases_pass_on_the_simulated_device(which: str, marked: str) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", CASES]
    words += ["-k", which, "-m", marked]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
