"""Changes that a user's code makes to its process do not affect other optimizers."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

import optbench
from optbench.cli import main

PLUGIN = """
import torch
from torch.optim import SGD

class Patching(SGD):
    def step(self, closure=None):
        torch.optim.SGD.step = torch.optim.AdamW.step = lambda self, closure=None: None
        torch.nn.functional.cross_entropy = lambda logits, *others, **more: logits.sum() * 0

class Plain(SGD):
    pass
"""
SUITE = """
name: patched
seeds: 2
optimizers:
  first: {target: sgd, lr: 0.1}
%s
  last: {target: adamw, lr: 0.001}
experiments:
  small:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [16]}}
    protocol: {batch_size: 32, max_epochs: 1, train_examples: 400, test_examples: 100, early_stopping: null}
    metrics: [average_accuracy]
"""


def accuracies(folder: Path, name: str, between: str = "") -> pd.DataFrame:
    """Return the accuracies of a run of the suite with the optimizers `between` inserted between its two."""
    file = folder / f"{name}.yaml"
    file.write_text(SUITE % between)
    words = ["--runs-dir", str(folder / "runs"), "--name", name, "--jobs", "1", "--quiet"]
    assert main(["run", str(file), *words]) in (0, 3)  # trials that patch may fail
    return pd.read_parquet(folder / "runs" / name / "accuracy.parquet")


def test_patches_by_a_users_code_do_not_affect_other_optimizers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(PLUGIN)
    users = "\n".join(f"  {name.lower()}: {{target: {mine}:{name}, lr: 0.1}}" for name in ("Patching", "Plain"))
    clean, among = accuracies(tmp_path, "clean"), accuracies(tmp_path, "among", users)
    both = among[among.optimizer.isin(["first", "last"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, clean, check_exact=True)
    # The user's other class is plain, unpatched SGD.
    first, plain = (among[among.optimizer == name].accuracy.tolist() for name in ("first", "plain"))
    assert plain == first
    assert len(first) >= 2 * 2 * 3


COUNTED = """
import os
from pathlib import Path
import torch
import optbench

def points(log: str, *, noise: float = 0.0) -> optbench.Dataset:
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()} {noise}\\n")
    inputs = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)) + noise
    half = optbench.Split(inputs, (inputs[:, 0] > noise).long())
    return optbench.Dataset("points", half, half, 2)
"""


def test_a_worker_loads_a_dataset_once_for_experiments_that_share_it(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(COUNTED)
    log = tmp_path / "loads"

    def experiment(noise: float) -> dict[str, object]:
        return {
            "dataset": {"kind": f"{tmp_path}/data.py:points", "log": str(log), "noise": noise},
            "tasks": {"kind": "class-incremental", "group_size": 2},
            "models": {"net": {"kind": "mlp", "hidden": [4]}},
            "protocol": {"batch_size": 16, "max_epochs": 1, "validation_examples": 100},
        }

    suite = {
        "name": "shared",
        "seeds": 1,
        "optimizers": {"sgd": {"target": "sgd", "lr": 0.1}},
        "experiments": {"a": experiment(0.0), "b": experiment(0.0), "c": experiment(2.0)},
    }
    found = optbench.run(suite, runs_dir=tmp_path / "runs", device="cpu", jobs=1)
    assert set(found.table("trials")["status"]) == {"ok"}
    loads = [line.split() for line in log.read_text().splitlines()]
    by_worker = [noise for pid, noise in loads if int(pid) != os.getpid()]
    assert sorted(by_worker) == ["0.0", "2.0"]
    accuracy = found.table("accuracy").query("after_task == 1").set_index("experiment")["loss"]
    assert accuracy["a"] == accuracy["b"] != accuracy["c"]
