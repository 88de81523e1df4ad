"""A simulated Ray cluster of four nodes with one CPU each gives the tables of a local run, even if nodes are lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import assert_same_tables
from tests.processes import MAIN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # raised by Ray itself
]
NODES = 4


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, "run", *words, "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for a run, assert that it succeeded, and return its standard output and standard error."""
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    return output, errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def here(folder: Path) -> Path:
    """Return the directory of the local run."""
    ended(started(folder, "smoke", "--name", "here", "--jobs", "2"))
    return folder / "runs" / "here"


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(NODES - 1):
            made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not true():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def finished(run: Path) -> int:
    """Count the finished cohorts in a run directory."""
    return len(list(run.glob("parts/[!.]*"))) if (run / "trials.parquet").exists() else 0


def test_a_cluster_gives_the_same_tables_as_a_local_run(here: Path, folder: Path, cluster: Any) -> None:
    output, errors = ended(started(folder, "smoke", "--name", "there", "--on", f"ray:{cluster.address}", "--quiet"))
    assert_same_tables(here, folder / "runs/there")
    assert "shampoo" in output
    assert "ray" not in errors.lower(), errors
    record = pd.read_json(folder / "runs/there/run.json", typ="series")
    assert (record["provenance"]["on"], record["provenance"]["jobs"]) == (f"ray:{cluster.address}", NODES)


def test_the_tables_are_the_same_when_two_of_four_nodes_are_removed(here: Path, folder: Path, cluster: Any) -> None:
    process = started(folder, "smoke", "--name", "half", "--on", f"ray:{cluster.address}")
    run = folder / "runs/half"
    wait_for(lambda: finished(run) >= 1, process)
    for node in cluster.list_all_nodes()[-2:]:
        cluster.remove_node(node, allow_graceful=False)
    output, errors = ended(process)
    assert_same_tables(here, run)
    assert "raylet" not in output, "standard output contains only results"
    assert "a worker was lost (" in errors


def test_a_run_whose_parent_was_killed_can_be_resumed_locally(here: Path, folder: Path, cluster: Any) -> None:
    process = started(folder, "smoke", "--name", "killed", "--on", f"ray:{cluster.address}", "--quiet")
    run = folder / "runs/killed"
    wait_for(lambda: finished(run) >= 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    left = len(pd.read_parquet(run / "trials.parquet"))
    ended(started(folder, "--resume", "killed", "--jobs", "2", "--quiet"))
    assert_same_tables(here, run)
    assert left < len(pd.read_parquet(run / "trials.parquet")), "the run was complete before it was killed"


def test_the_loss_of_the_head_node_ends_the_run(folder: Path, cluster: Any) -> None:
    address = cluster.address  # unset once the server is killed
    sets = [
        "--experiment",
        "permuted-mnist",
        "--optimizer",
        "sgd",
        "--set",
        "experiments.permuted-mnist.tasks.count=2000",
    ]
    process = started(folder, "smoke", *sets, "--name", "headless", "--on", f"ray:{address}")
    run = folder / "runs/headless"
    wait_for(lambda: any(run.glob("interim/[!.]*")), process)
    cluster.head_node.kill_gcs_server()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2, errors[-3000:]
    assert f"the Ray cluster is at {address}: {NODES} CPUs, 0 GPUs" in errors
    assert f"optbench: lost contact with the head node of the Ray cluster ({address}): " in errors
    assert any(run.glob("interim/[!.]*")), "training can be resumed from these states"


SCRIPT = """
import torch, optbench
class Mine(torch.optim.SGD):
    ...
def train(on):
    mine = {"sgd": None, "mine": {"target": Mine, "lr": 0.05}}
    one = {"seeds": 1, "experiments": ["permuted-mnist"], "optimizers": mine}
    return optbench.run("smoke", **one, device="cpu", jobs=2, name=on, on=on)
train("local")
train("ray")
"""


def test_a_local_cluster_is_started_if_there_is_none_and_objects_reach_it(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert_same_tables(folder / "runs/local", folder / "runs/ray")


def test_an_unreachable_cluster_is_reported_in_one_line(folder: Path) -> None:
    process = started(folder, "smoke", "--name", "nowhere", "--on", "ray:127.0.0.1:9", "--quiet")
    output, errors = process.communicate(timeout=200)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("optbench: --on ray:127.0.0.1:9: cannot join: no answer from this address: ")
    assert errors.count("\n") == 1
    assert not (folder / "runs/nowhere").exists()
