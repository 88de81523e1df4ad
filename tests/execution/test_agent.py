"""Workers that do not share files with the run's main process: the messages in both directions.

The agents run in this process; their worker processes are real and start in a separate folder.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch

import optbench
from optbench.data import load
from optbench.engine import Workspace
from optbench.execution.agent import PREFIX, Agent, Hello
from optbench.execution.backend import Lost, Message, Ready, Refused
from optbench.execution.messages import Arrived, Elsewhere, Finished, Job, Said, Saved, Train, Unit
from optbench.execution.nursery import spawn
from optbench.execution.parcels import Parcel, datasets, job_for_elsewhere, pack, packed_dataset, unpack
from optbench.execution.schedule import make_plan, spread
from optbench.execution.work import do
from optbench.execution.worker import work
from optbench.plan.progress import Progress
from optbench.store.interim import find_begun, write_arrived
from optbench.store.parts import MANIFEST
from optbench.store.tables import TrialRow
from tests.conftest import PoolHere, assert_same_tables, small_suite

MINE = """import optbench, torch
class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
def points(count=64):
    draws = torch.Generator().manual_seed(0)
    inputs = torch.rand(2 * count, 3, generator=draws)
    half = lambda which: optbench.Split(inputs[which], (inputs[which].sum(1) > 1.5).long())
    with open("points.txt") as file:  # which no other machine has
        assert file.read() == "here"
    return optbench.Dataset("points", half(slice(count)), half(slice(count, None)), classes=2)
"""
SUITE = """
name: sent
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.1}
  mine: {target: ./mine.py:Mine}
experiments:
  one:
    dataset: {kind: ./mine.py:points}
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [4]}}
    protocol: {max_steps: 3, train_examples: 40, validation_examples: 8, test_examples: 32, batch_size: 8}
    metrics: []
    pairs: {controls: []}
"""


class AgentWorker:
    """A worker like `RayWorker`, without Ray."""

    is_ready = False

    def __init__(self, backend: Agents) -> None:
        self.backend = backend
        with contextlib.chdir(backend.folder):
            self.agent = Agent("cpu")
        self.inbox: deque[Message | Arrived | Said] = deque()

    def give(self, unit: Unit, job: Job) -> None:
        data = {key: self.backend.data[key] for key in datasets(job.suite.experiments[unit.experiment])}
        sent = pickle.dumps((Parcel.of(pack(unit, job.interim)), self.backend.job, data))
        self.agent.give(*pickle.loads(sent))

    def receive(self) -> Message | Arrived | Said:
        message = self.inbox.popleft()
        self.is_ready = self.is_ready or isinstance(message, Ready)
        return message

    def renew(self) -> None:
        self.agent.renew()


class Agents:
    device, jobs = "cpu", 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[AgentWorker] = []
        self.data: dict[str, Parcel] = {}

    def begin(self, job: Job, units: Sequence[Unit]) -> None:
        self.job = Parcel.of(pickle.dumps(job_for_elsewhere(job, units, force=False)))
        for unit in units:
            for key, settings in datasets(job.suite.experiments[unit.experiment]).items():
                self.data[key] = Parcel.of(packed_dataset(settings, job.data_dir))

    def start(self, place: int) -> AgentWorker:
        self.workers.append(worker := AgentWorker(self))
        return worker

    def wait(self, workers: Sequence[Any]) -> Sequence[Any]:
        for worker in workers:
            if not worker.inbox:
                for message in worker.agent.receive(1.0):
                    worker.inbox.append(Ready() if isinstance(message, Hello) else message)
        return [worker for worker in workers if worker.inbox]

    def discard(self, worker: Any) -> None:
        worker.agent.close()
        self.workers.remove(worker)

    def close(self) -> None:
        for worker in self.workers:
            worker.agent.close()
        self.workers.clear()

    def kill(self) -> None: ...


def test_a_remote_run_gives_the_same_tables_as_a_local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite has a user's file, an object, a dataset read from a local file, and solutions that are compared."""
    monkeypatch.chdir(tmp_path)
    Path("suite.yaml").write_text(SUITE)
    Path("mine.py").write_text(MINE)
    Path("points.txt").write_text("here")

    class Closure(torch.optim.SGD):
        pass

    def run(name: str) -> Path:
        added: dict[str, Any] = {"sgd": None, "mine": None, "object": {"target": Closure, "lr": 0.2}}
        optbench.run("suite.yaml", optimizers=added, device="cpu", jobs=1, name=name)
        return Path("runs", name)

    with monkeypatch.context() as patch:
        patch.setattr("optbench.execution.session.Pool", PoolHere)
        patch.setattr("optbench.execution.nursery.FORKS", False)
        here = run("here")
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(away))
    monkeypatch.setattr("optbench.execution.session.open_backend", lambda *given, **named: Agents(away))
    there = run("there")
    assert_same_tables(here, there)
    pd.testing.assert_frame_equal(pd.read_parquet(here / "pairs.parquet"), pd.read_parquet(there / "pairs.parquet"))
    for file in sorted((here / "checkpoints").iterdir()):
        assert (there / "checkpoints" / file.name).read_bytes() == file.read_bytes()
    assert len(pd.read_parquet(there / "pairs.parquet")) > 0
    assert set(pd.read_parquet(there / "trials.parquet").status) == {"ok"}
    assert list(away.iterdir()) == [], "agents leave nothing behind"


@pytest.fixture
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make agents create their folders in `tmp_path` and start no processes, which would take seconds."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("optbench.execution.agent.LocalProcesses", lambda devices: MagicMock())


@pytest.mark.usefixtures("_temporary")
def test_a_damaged_parcel_is_reported_as_lost(tmp_path: Path) -> None:
    suite = small_suite({"sgd": {"target": "sgd"}})
    (unit, *_) = [Train(cohort, {}) for cohort in spread(make_plan(suite), 1)]
    whole = Parcel.of(pack(unit, tmp_path))
    job = Parcel.of(pickle.dumps(job_for_elsewhere(Job(suite, None, tmp_path), [unit], force=False)))
    agent = Agent("cpu")
    try:
        for one, other in ((Parcel(whole.sum, whole.content + b"!"), job), (whole, Parcel("0" * 64, job.content))):
            agent.give(one, other, {})
            *_, lost = agent.receive(0.0)
            assert isinstance(lost, Lost)
            assert f"arrived damaged: expected SHA-256 {(one if one is not whole else other).sum[:16]}" in lost.cause
    finally:
        agent.close()


def test_an_agent_forwards_messages_without_importing_torch(tmp_path: Path) -> None:
    """An agent must stay small because it runs next to the process that trains."""
    suite = small_suite({"sgd": {"target": "sgd"}})
    (unit, *_) = [Train(cohort, {}) for cohort in spread(make_plan(suite), 1)]
    trial = unit.cohort.trials[0]
    row = TrialRow("ok", None, None, 1, 1, 1, "cpu", "{}", "", 0.0, 0.0, 0, None, 0, None)
    weights = {"weight": np.zeros(2, np.float32)}
    passing = [
        job_for_elsewhere(Job(suite, None, tmp_path), [unit], force=False),
        Progress(trial.id, 1, 0.5, None, "ok"),
        Finished(unit.cohort, ((trial, row),), ((trial, weights),)),
    ]
    (tmp_path / "unit").write_bytes(pack(unit, tmp_path))
    (tmp_path / "passing").write_bytes(pickle.dumps(passing))
    code = """
import pickle, sys
from pathlib import Path
from optbench.execution import agent, ray_cluster
agent.unpack(Path("unit").read_bytes(), Path())
pickle.loads(pickle.dumps(pickle.loads(Path("passing").read_bytes())))
agent.versions()
sys.exit(", ".join({"torch", "ray", "scipy", "pandas"} & sys.modules.keys()) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_remote_worker_without_its_device_is_refused(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = spawn(work, theirs, "cuda:0")
    try:
        job = Job(small_suite({"sgd": {"target": "sgd"}}), None, tmp_path)
        ours.send(job_for_elsewhere(job, [], force=True))
        assert ours.poll(120)
        refused = ours.recv()
    finally:
        ours.close()
        process.kill()
        process.join()
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("--device cuda:0: ")
    assert refused.reason.endswith(f" on {socket.gethostname()}")


@pytest.mark.usefixtures("_temporary")
def test_an_agent_removes_the_folder_of_a_killed_agent(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname()
    left, *others = (
        tmp_path / f"{PREFIX}{host}-{pid}-abc"
        for host, pid in ((here, ended.pid), (here, os.getpid()), ("other", ended.pid), (f"{here}-1", ended.pid))
    )
    for folder in (left, *others):
        (folder / "interim").mkdir(parents=True)
    Agent("cpu").close()
    assert not left.exists()
    assert all(folder.exists() for folder in others), "their processes are alive, or on other hosts"


@pytest.mark.usefixtures("_temporary")
def test_a_unit_that_an_agent_cannot_receive_is_reported_as_lost() -> None:
    agent = Agent("cpu")
    agent.fetch = MagicMock(side_effect=RuntimeError("the object was lost"))  # type: ignore[method-assign]
    try:
        agent.give(Parcel.of(b""), Parcel.of(b""), {})
        *_, lost = agent.receive(0.0)
        assert lost == Lost(f"{socket.gethostname()}: RuntimeError: the object was lost")
    finally:
        agent.close()


# Interim states, saved at the end of a task

LONG = small_suite({"sgd": {"target": "sgd"}}, tasks={"kind": "permuted", "count": 3}, max_epochs=1, train_examples=64)


def trained_remotely(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Train, list[Saved], Finished]:
    """Train a cohort in `folder` as a remote worker does; return its unit, the states it sent, and its answer."""
    monkeypatch.setattr("optbench.execution.work.LEAST_SECONDS_ELSEWHERE", 0.0)
    monkeypatch.setattr("optbench.execution.work.SHARE", 1e9)
    unit = Train(spread(make_plan(LONG), 1)[0], {})
    experiment = LONG.experiments["small"]
    workspace = Workspace.of(experiment, load(experiment.dataset), LONG.seed, torch.device("cpu"))
    told: list[Any] = []
    answer = do(unit, workspace, told.append, folder, Elsewhere({"torch": "1.0.0"}, {}))
    assert isinstance(answer, Finished)
    return unit, [message for message in told if isinstance(message, Saved)], answer


def test_interim_states_reach_the_run_directory_and_the_next_worker_unless_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here, next_one = (tmp_path / name for name in ("there", "here", "next"))
    for folder in (there, here, next_one):
        folder.mkdir()
    unit, told, answer = trained_remotely(there, monkeypatch)
    assert [message.part.name for message in told] == [f"{unit.id}.1", f"{unit.id}.2"]
    said = f"trained with torch {torch.__version__}; the main process has 1.0.0"
    assert all(said in str(row.note) for _, row in answer.rows if isinstance(row, TrialRow))
    files = {file.name: file.read_bytes() for file in told[-1].part.iterdir()}
    (here / f"{unit.id}.1").mkdir()
    write_arrived(here, f"{unit.id}.2", {**files, "0.pt": files["0.pt"][:-1]})
    write_arrived(here, f"{unit.id}.2", {**files, "../0.pt": b""})
    write_arrived(here, f"{unit.id}.2", {name: data for name, data in files.items() if name != MANIFEST})
    assert [part.name for part in here.iterdir()] == [f"{unit.id}.1"], "damaged or incomplete states are discarded"
    write_arrived(here, f"{unit.id}.2", files)
    assert [part.name for part in here.iterdir()] == [f"{unit.id}.2"], "the new state replaces the earlier one"
    begun = find_begun(here)
    assert {place.task for place in begun.values()} == {2}
    (here / "another.1").mkdir()
    given = unpack(pack(Train(unit.cohort, begun, "note"), here), next_one)
    assert isinstance(given, Train)
    assert (given.cohort, given.note) == (unit.cohort, "note")
    assert {place.part for place in given.begun.values()} == {next_one / "interim" / f"{unit.id}.2"}
    assert find_begun(next_one / "interim") == given.begun
    assert [part.name for part in (next_one / "interim").iterdir()] == [f"{unit.id}.2"], (
        "states of other cohorts are not sent"
    )
