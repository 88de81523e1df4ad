"""A run killed with all its processes at 40 random moments and resumed has the tables of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optbench.store import read_run
from optbench.suite import Suite, dump_suite
from tests.conftest import assert_same_tables, small_suite
from tests.processes import MAIN

KILLS = 40


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    # A separate session, so that the workers can be killed with the program.
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words, "--device", "cpu", "--jobs", "2", "--quiet"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


# Many short cohorts: kills fall inside training, between cohorts, in writes and in merges.
SHORT = small_suite(
    {f"sgd-{i}": {"target": "sgd", "lr": 0.01 * (i + 1), "momentum": 0.1 * i} for i in range(4)}
    | {f"shampoo-{f}": {"target": "shampoo", "precondition_frequency": f} for f in range(2, 8)},
    seeds=4,
)
# Few long cohorts: kills fall between tasks and while interim states are written.
LONG = small_suite(
    {
        "sgd": {"target": "sgd", "lr": 0.05, "momentum": 0.9},
        "adam": {"target": "adam"},
        "l1": {"target": "l1", "base": {"target": "sgd"}},
    },
    tasks={"kind": "permuted", "count": 6},
    model={"kind": "mlp", "hidden": [100]},
    seeds=2,
    train_examples=4000,
    max_epochs=8,
    early_stopping=None,
)


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "longest"), [(SHORT, 9.0), (LONG, 16.0)], ids=["short", "long"])
def test_a_run_killed_at_random_moments_ends_with_the_same_tables(tmp_path: Path, suite: Suite, longest: float) -> None:
    (tmp_path / "suite.yaml").write_text(dump_suite(suite))
    assert started(tmp_path, "run", "suite.yaml", "--name", "whole").wait() == 0
    moments = random.Random(0)
    kills = runs = 0
    while kills < KILLS // 2:
        # A new run starts whenever one is complete.
        name = f"killed-{runs}"
        path = tmp_path / "runs" / name
        going_on = (path / "run.json").exists()
        words = ["run", "--resume", name] if going_on else ["run", "suite.yaml", "--name", name]
        assert going_on or not path.exists(), "a directory without run.json would block the next start"
        process = started(tmp_path, *words)
        try:
            process.wait(timeout=moments.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(0.2)
            kills += 1
            continue
        assert process.returncode == 0
        assert_same_tables(tmp_path / "runs/whole", path)
        runs += 1
    continued = 0
    for path in sorted((tmp_path / "runs").glob("killed-*")):
        if (path / "run.json").exists() and read_run(path).record["status"] != "complete":
            assert started(tmp_path, "run", "--resume", path.name).wait() == 0
            assert_same_tables(tmp_path / "runs/whole", path)
        continued += sum(len(entry["after_task"]) for entry in read_run(path).record.get("resumed", []))
    assert continued > 0 or suite is SHORT, "no trial was resumed between two tasks"
