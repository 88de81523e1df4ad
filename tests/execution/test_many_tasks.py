"""A run of 120 tasks is killed halfway and resumed; one of its members diverges in task 50."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.errors import StoreError
from optbench.store import read_run
from optbench.store.interim import read_members
from tests.conftest import assert_same_tables, tables
from tests.processes import MAIN

SUITE = """
name: many
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.05}
  adam: {target: adam, lr: 0.001}
  shrink: {target: shrink-and-perturb, base: {target: adam, lr: 0.001}}
  fresh: {target: fresh-network, base: {target: adam, lr: 0.001}}
  leaves: {target: "./leaves.py:Leaves", lr: 0.05, at: [0, 2470]}
experiments:
  permuted:
    dataset: {kind: mnist, resize: 14}
    tasks: {kind: permuted, count: 120, examples_per_task: 800}
    models: {net: {kind: mlp, hidden: [20]}}
    protocol:
      {batch_size: 16, max_epochs: 1, early_stopping: null, validation_examples: 200, test_examples: 200}
    metrics: [online_accuracy]
    checkpoints: false
"""
LEAVES = '''
import torch


class Leaves(torch.optim.SGD):
    """Gradient descent whose weights are no numbers any more from step `at` on; 0: never."""

    def __init__(self, params, lr=0.1, at=0):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group["at"], group["steps"] = at, 0

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["steps"] += 1
            if group["steps"] == group["at"]:
                for p in group["params"]:
                    p.data.fill_(float("nan"))
'''
WORDS = ("--device", "cpu", "--quiet", "--jobs", "1")


@pytest.mark.slow
def test_a_run_killed_at_task_60_of_120_and_resumed_has_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("leaves.py").write_text(LEAVES)
    Path("many.yaml").write_text(SUITE)
    assert main(["run", "many.yaml", "--name", "whole", *WORDS]) == 0
    words = ["run", "many.yaml", "--name", "killed", *WORDS]
    process = subprocess.Popen([sys.executable, "-c", MAIN, *words], start_new_session=True, stderr=subprocess.DEVNULL)
    begun = tmp_path / "runs/killed/interim"
    while process.poll() is None and not any(_in_the_middle(part) for part in begun.glob("[!.]*")):
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert main(["run", "--resume", "killed", *WORDS]) == 0
    (resumed,) = read_run(tmp_path / "runs/killed").record["resumed"]
    assert any(60 <= task < 110 for task in resumed["after_task"].values())
    assert_same_tables(tmp_path / "runs/whole", tmp_path / "runs/killed")

    # One member diverges in task 50; the other member of the cohort has the same bits as alone.
    alone = ["--optimizer", "leaves", "--set", "optimizers.leaves.at=0", "--name", "alone"]
    assert main(["run", "many.yaml", *alone, *WORDS]) == 0
    whole, apart = tables(tmp_path / "runs/whole"), tables(tmp_path / "runs/alone")
    own = whole["online"].query("optimizer == 'leaves'")
    gone = own[own.variant == "at=2470"]
    assert gone.groupby("seed").task.max().tolist() == [50, 50]
    assert gone[gone.task == 50].online_accuracy.isna().all()
    assert "diverged in this task" in gone[gone.task == 50].note.iloc[0]
    for name in ("online", "accuracy", "curves"):
        kept = whole[name].query("optimizer == 'leaves' and variant == 'at=0'")
        keys = ["trial", "variant"]
        left, right = (table.drop(columns=keys).reset_index(drop=True) for table in (kept, apart[name]))
        assert left.equals(right)


def _in_the_middle(part: Path) -> bool:
    """Return True if all members of an interim state can be resumed and have finished 60 to 109 tasks."""
    try:
        return all(60 <= member.task < 110 and member.refused is None for member in read_members(part))
    except StoreError:  # a newer state is replacing this one
        return False
