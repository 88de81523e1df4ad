"""Run directories are durable from the first finished cohort, resumable, and have the same tables every time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from optbench.errors import StoreError, UsageError
from optbench.execution.schedule import Plan, make_plan
from optbench.execution.session import Options, Outcome, run
from optbench.plan import Trial
from optbench.store import read_run
from optbench.store.tables import KEY_COLUMNS, SCHEMA_VERSION, TABLES, TrialRow
from optbench.suite import Suite, dump_suite, load_suite
from tests.conftest import assert_same_tables, small_suite, tables

RATES = {"sgd": {"target": "sgd", "lr": 0.1}, "adamw": {"target": "adamw", "lr": 1e-3}}


class Silent:
    """A view that only records the trained trials."""

    def __init__(self) -> None:
        self.trained: list[str] = []

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None: ...
    def progress(self, progress: object) -> None: ...
    def warning(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def details(self, text: str) -> None: ...

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        self.trained += [trial.id for trial, _ in rows]


def do(suite: Suite, runs_dir: Path, name: str, jobs: int = 2) -> Outcome:
    return run(suite, Options(device="cpu", runs_dir=runs_dir, name=name, jobs=jobs), Silent())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    return do(small_suite(RATES, max_epochs=1), runs, "first").path


def test_the_run_directory_keeps_its_contract(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record["schema_version"] == SCHEMA_VERSION
    assert record["status"] == "complete"
    assert record["run"] == "first"
    assert {"created", "finished", "command", "seeds", "suite", "suite_hash"} <= record.keys()
    assert {"optbench", "python", "torch", "cpu", "device", "git", "packages"} <= record["provenance"].keys()
    for name in TABLES:
        table = pq.read_table(finished / f"{name}.parquet")
        assert tuple(table.column_names[:7]) == KEY_COLUMNS
        assert table.schema.metadata[b"optbench_schema_version"] == str(SCHEMA_VERSION).encode()
        assert (table.num_rows > 0) == (name != "pruning"), "only requested measures are taken"
    assert not (finished / "parts").exists()
    trials = pd.read_parquet(finished / "trials.parquet")
    assert list(trials.status) == ["ok"] * 6
    assert trials.groupby("seed").init_hash.nunique().eq(1).all()
    assert trials.init_hash.nunique() == 3


def test_checkpoints_contain_the_final_weights(finished: Path) -> None:
    trials = pd.read_parquet(finished / "trials.parquet")
    for trial in trials.itertuples():
        weights = load_file(finished / str(trial.checkpoint))
        assert sum(weight.numel() for weight in weights.values()) == trial.parameters
        assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_the_resolved_suite_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    again = do(load_suite(finished / "suite.yaml"), tmp_path, "again", jobs=1)
    assert_same_tables(finished, again.path)


def test_an_existing_run_is_not_overwritten(finished: Path) -> None:
    with pytest.raises(StoreError, match="already exists"):
        do(small_suite(RATES), finished.parent, finished.name)


def test_resuming_a_finished_run_trains_nothing(finished: Path) -> None:
    before = tables(finished)
    view = Silent()
    run(small_suite(RATES, max_epochs=1), Options(device="cpu", resume=finished, jobs=2), view)
    assert view.trained == []
    assert all(before[name].equals(table) for name, table in tables(finished).items())


def test_resuming_with_other_settings_is_refused(finished: Path) -> None:
    with pytest.raises(UsageError, match="another suite"):
        make_plan(small_suite(RATES, max_epochs=2), finished)


def test_a_killed_run_keeps_finished_trials_and_resumes_to_the_same_tables(finished: Path, tmp_path: Path) -> None:
    suite = small_suite(RATES, max_epochs=1)
    (tmp_path / "suite.yaml").write_text(dump_suite(suite))
    words = ["run", "suite.yaml", "--runs-dir", "runs", "--name", "killed", "--jobs", "1", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "optbench", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    path, deadline = tmp_path / "runs" / "killed", time.monotonic() + 120
    while not list(path.glob("parts/[!.]*")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.kill()
    process.wait()
    kept = set(read_run(path).table("trials")["trial"].to_pylist())
    assert 0 < len(kept) < 6
    view = Silent()
    outcome = run(suite, Options(device="cpu", resume=path, jobs=2), view)
    assert set(view.trained) == {trial.id for trial in make_plan(suite).trials} - kept
    assert outcome.statuses == {"ok": 6}
    assert_same_tables(finished, path)


PLUGIN = """
import torch
class Odd(torch.optim.SGD):
    def __init__(self, params, lr=0.1, behave="raise"):
        super().__init__(params, lr=lr)
        self.behave, self.count = behave, 0
    def step(self, closure=None):
        self.count += 1
        if self.count == 7 and self.behave == "raise":
            raise RuntimeError("seven is enough")
        if self.count == 7 and self.behave == "nan":
            self.param_groups[0]["params"][0].data.fill_(float("nan"))
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(1.0)               # mutates its gradients
            p.data = p.data - 0.1 * p.grad  # rebinds its parameters
"""


def test_faulty_user_optimizers_fail_only_their_own_trials(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(PLUGIN)
    ways = {"well": ("ok", None), "raise": ("failed", "RuntimeError"), "nan": ("diverged", None)}
    odd = {way: {"target": f"{tmp_path}/odd.py:Odd", "behave": way} for way in ways}
    outcome = do(small_suite({**odd, "sgd": RATES["sgd"]}, max_epochs=1, seeds=2), tmp_path, "run")
    trials = read_run(outcome.path).table("trials").to_pandas()
    assert list(trials[trials.optimizer == "sgd"].status) == ["ok", "ok"]
    for way, (status, error) in ways.items():
        mine = trials[trials.optimizer == way]
        assert list(mine.status) == [status, status]
        assert {value for value in mine.error_type if isinstance(value, str)} == ({error} if error else set())
        if way != "well":
            assert set(mine.last_step) <= {7, 8}
    # The well-behaved optimizer is plain SGD.
    accuracy = read_run(outcome.path).table("accuracy").to_pandas()
    pair = [list(accuracy[accuracy.optimizer == name].accuracy) for name in ("well", "sgd")]
    assert pair[0] == pytest.approx(pair[1], abs=0.02)


DEADLY = """
import os, pathlib, signal, torch
class Deadly(torch.optim.SGD):
    def __init__(self, params, lr=0.1, once=0.2, always=0.3):
        super().__init__(params, lr=lr)
        self.count, self.once, self.always = 0, lr == once, lr == always
    def step(self, closure=None):
        self.count += 1
        mark = pathlib.Path(__file__).with_name("died")
        if self.count == 7 and self.once and not mark.exists():
            mark.touch()
            raise RuntimeError("CUDA error: device-side assert triggered")  # after which no call works
        if self.count == 7 and self.always:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step()
"""


def test_a_dying_worker_fails_only_the_trial_that_kills_it(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    deadly = {"target": f"{tmp_path}/deadly.py:Deadly", "lr": [0.1, 0.2, 0.3]}
    suite = small_suite({"deadly": deadly, "sgd": {"target": "sgd", "lr": [0.1, 0.2, 0.3]}}, max_epochs=1, seeds=1)
    outcome = run(suite, Options(device="cpu", runs_dir=tmp_path, name="run", jobs=1), Silent())
    found = read_run(outcome.path)
    trials = found.table("trials").to_pandas().set_index(["optimizer", "variant"])
    mine = trials.loc["deadly"]
    assert list(mine.status) == ["ok", "ok", "failed"]
    note = "trained again because its worker process had died (exit code 1)"
    assert list(mine.note)[:2] == [note, note]
    assert mine.error_type["lr=0.3"] == "WorkerDied"
    assert mine.error_message["lr=0.3"].startswith("the worker process died twice (SIGKILL")
    assert list(trials.loc["sgd"].note.isna()) == [True] * 3
    accuracy = found.table("accuracy").to_pandas().set_index(["optimizer", "variant"])
    for variant in ("lr=0.1", "lr=0.2"):
        assert list(accuracy.loc["deadly", variant].accuracy) == list(accuracy.loc["sgd", variant].accuracy)
