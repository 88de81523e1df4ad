"""Runs with users' models from the command line: training, resuming after a kill, and refusing invalid models."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from optbench.cli import main
from optbench.data import InputSpec
from tests import own_models
from tests.conftest import assert_same_tables

pytestmark = pytest.mark.usefixtures("_train_here")
SUITE = """
name: own
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.05}
  sam: {target: sam, base: {target: adamw, lr: 0.01}}
experiments:
  nets:
    tasks: {kind: permuted, count: 2}
    models: {resnet: {kind: "./own_models.py:ResNet", dropout: 0.3}}
    metrics: [effective_rank]
    protocol: &protocol
      {batch_size: 32, max_epochs: 1, evaluate_every: 0.5, validation_examples: 60, train_examples: 128,
       test_examples: 60}
"""
# Train like `PoolHere`, with an interim state after every task, in a process that can be killed.
KILLED = """
import sys
import optbench.execution.session, optbench.execution.work
from optbench.cli import main
from tests.conftest import PoolHere
optbench.execution.session.Pool = PoolHere
optbench.execution.work.LEAST_SECONDS, optbench.execution.work.SHARE = 0.0, 1e9
import torch
torch.set_num_threads(1)
main(sys.argv[1:])
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(own_models.__file__, tmp_path / "own_models.py")
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path / "suite.yaml"


def words(suite: Path, name: str) -> list[str]:
    return ["run", str(suite), "--runs-dir", str(suite.parent), "--name", name, "--device", "cpu", "--quiet"]


def test_a_killed_run_of_a_network_with_batch_norm_and_dropout_is_resumed_to_the_same_bits(suite: Path) -> None:
    assert main(words(suite, "whole")) == 0
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.Popen([sys.executable, "-c", KILLED, *words(suite, "cut")], env=here)
    deadline = time.monotonic() + 120
    while not list(suite.parent.glob("cut/interim/*")) and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert main(["run", str(suite), "--device", "cpu", "--quiet", "--resume", str(suite.parent / "cut")]) == 0
    assert_same_tables(suite.parent / "whole", suite.parent / "cut")
    trials = pd.read_parquet(suite.parent / "whole" / "trials.parquet")
    assert trials.groupby("seed")["init_hash"].nunique().tolist() == [1, 1]
    assert trials["note"].str.contains("trained member by member: batch norm, dropout").all()
    for name in trials["checkpoint"]:
        whole, cut = (load_file(suite.parent / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
        own_models.ResNet(InputSpec((1, 28, 28)), 10).load_state_dict(whole)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("Narrow", "expected logits of shape (B, 10), got (B, 7) for inputs of shape (B, 1, 28, 28)"),
        (
            "Raising",
            "RuntimeError: no attention to pay, raised by Raising.forward in own_models.py:LINE; "
            "the model was given inputs of shape (B, 1, 28, 28)",
        ),
        ("function", "expected an nn.Module, got list"),
    ],
)
def test_a_wrong_model_is_refused_before_training(
    model: str, message: str, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write_text(SUITE.replace('ResNet", dropout: 0.3', f'{model}"'))
    assert main(words(suite, "wrong")) == 2
    said = re.escape(f"experiments.nets.models.resnet: ./own_models.py:{model}: {message}").replace(
        "LINE", r"\d+: [^;]*"
    )
    assert re.fullmatch(rf"optbench: {suite}:\d+:\d+: {said}\n", capsys.readouterr().err)


def test_a_model_that_raises_later_fails_only_its_own_trials(suite: Path) -> None:
    text = SUITE.replace('ResNet", dropout: 0.3', 'RaisesLater"').replace("lr: 0.05", "lr: [0.01, 5.0]")
    suite.write_text(text)
    assert main(words(suite, "some")) == 3
    trials = pd.read_parquet(suite.parent / "some" / "trials.parquet")
    failed = trials[trials["status"] == "failed"]
    assert len(failed) == 2
    assert set(failed["variant"]) == {"lr=5"}
    assert set(failed["error_type"] + ": " + failed["error_message"]) == {"ArithmeticError: weights above one half"}


def test_a_dry_run_describes_how_users_models_are_trained(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = '{resnet: {kind: "./own_models.py:ResNet"}, vit: {kind: "./own_models.py:VisionTransformer"}}'
    suite.write_text(SUITE.replace('{resnet: {kind: "./own_models.py:ResNet", dropout: 0.3}}', models))
    assert main([*words(suite, "dry"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"  nets, resnet: [\d,]+ parameters; trained member by member: batch norm, dropout\n", out)
    assert re.search(r"  nets, vit: [\d,]+ parameters; trained with torch.func for all members if a test", out)


def test_a_dry_run_refuses_a_dataset_that_raises_with_the_error_of_a_run(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write_text(SUITE.replace("    tasks:", '    dataset: {kind: "./data.py:lost"}\n    tasks:'))
    (suite.parent / "data.py").write_text("def lost():\n    raise RuntimeError('no disk')\n")
    errors = []
    for more in ([], ["--dry-run"]):
        assert main([*words(suite, "lost"), *more]) == 2
        errors.append(capsys.readouterr().err)
    assert errors[0].endswith("experiments.nets.dataset: ./data.py:lost raised RuntimeError: no disk\n")
    assert errors[0] == errors[1]
