"""A run under a real memory limit: a cohort that does not fit is split, and a trial that does not fit alone fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from optbench.cli import main
from optbench.store import read_run
from optbench.store.tables import TABLES
from tests.conftest import tables

resource = pytest.importorskip("resource")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("_train_here"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS"),
]

SEEDS = 4
SUITE = f"""
name: memory
seeds: {SEEDS}
optimizers:
  adam: {{target: adam}}
experiments:
  together: &small
    tasks: {{kind: permuted, count: 1}}
    models: {{narrow: {{kind: mlp, hidden: [10]}}}}
    protocol: &protocol
      {{batch_size: 32, max_steps: 2, train_examples: 100, validation_examples: 100, test_examples: 100}}
    metrics: []
    checkpoints: false
  in-parts:
    <<: *small
    models: {{wide: {{kind: mlp, hidden: [4000]}}}}
  not-at-all:
    <<: *small
    models: {{huge: {{kind: mlp, hidden: [60000]}}}}
"""
PLAIN = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
"""Settings that keep the address space used by devices and threads, which differ between machines, small."""
ROOM = 320 << 20
"""Bytes beyond what a worker needs for `narrow`.

`wide` has 3.2 million weights, 12.7 MB, and a member trained with Adam needs about ten copies of them (weights,
gradients, state and temporaries), so that one or two members fit but not four. One copy of `huge` is 191 MB.
"""

WORKER = """
import sys
from pathlib import Path
import torch
from optbench.data import load
from optbench.engine import Workspace, train
from optbench.plan import cohorts, complete, trials
from optbench.suite import load_suite

torch.set_num_threads(1)
suite = complete(load_suite(Path(sys.argv[1])))
cohort = next(c for c in cohorts(trials(suite)) if c.experiment == "together")
workspace = Workspace.of(suite.experiments["together"], load("mnist"), suite.seed, torch.device("cpu"))
train(cohort, workspace, lambda progress: None)
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmPeak")))
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("memory") / "suite.yaml"
    file.write_text(SUITE)
    return file


@pytest.fixture(scope="module")
def enough(suite: Path) -> int:
    """Return the address space in bytes that a worker needs to train small networks."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(suite)], capture_output=True, text=True, check=True, env=PLAIN
    )
    return int(done.stdout) << 10


def words(suite: Path, name: str) -> list[str]:
    path = ["--runs-dir", str(suite.parent / "runs"), "--name", name]
    return ["run", str(suite), *path, "--device", "cpu", "--jobs", "1", "--quiet"]


@pytest.fixture(scope="module")
def unlimited(_train_here: None, suite: Path) -> Path:
    chosen = ["--experiment", "together", "--experiment", "in-parts"]
    assert main([*words(suite, "unlimited"), *chosen]) == 0
    return suite.parent / "runs/unlimited"


@pytest.fixture(scope="module")
def limited(suite: Path, enough: int) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run under the limit, which the worker inherits; return the run directory and the finished process."""
    most = enough + ROOM
    done = subprocess.run(
        [sys.executable, "-m", "optbench", *words(suite, "limited")],
        capture_output=True,
        text=True,
        check=False,
        env=PLAIN,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )
    return suite.parent / "runs/limited", done


def rows(path: Path, experiment: str) -> pd.DataFrame:
    table = pd.read_parquet(path / "trials.parquet")
    return table[table["experiment"] == experiment]


def test_a_cohort_that_does_not_fit_is_trained_in_parts_with_a_note(
    limited: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    path, _ = limited
    assert rows(path, "together")["note"].isna().all()
    parts = rows(path, "in-parts")
    assert list(parts["status"]) == ["ok"] * SEEDS
    assert all(note.startswith(f"out of memory with {SEEDS} ") for note in parts["note"])


def test_results_do_not_depend_on_the_available_memory(
    limited: tuple[Path, subprocess.CompletedProcess[str]], unlimited: Path
) -> None:
    found, expected = tables(limited[0]), tables(unlimited)
    for name in TABLES:
        own = found[name][found[name]["experiment"] != "not-at-all"].reset_index(drop=True)
        without = ["note"] if name == "trials" else []
        pd.testing.assert_frame_equal(
            own.drop(columns=without), expected[name].drop(columns=without), check_exact=True, check_dtype=len(own) > 0
        )
    assert len(expected["accuracy"]) == 2 * SEEDS * 2, "scores before and after the task"


def test_a_trial_that_does_not_fit_alone_fails_and_the_others_are_trained(
    limited: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    path, done = limited
    failed = rows(path, "not-at-all")
    assert list(failed["status"]) == ["failed"] * SEEDS
    assert set(failed["error_type"]) == {"OutOfMemory"}
    for message in failed["error_message"]:
        assert message.startswith("not enough memory to train one trial alone")
        assert "\n" not in message
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"optbench: warning: {SEEDS} trials failed: not-at-all/huge/adam/")
    assert read_run(path).record["status"] == "complete"
