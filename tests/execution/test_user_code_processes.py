"""A process that has run a user's code gives no other trial what that code left behind."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

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
    """The accuracies in a run of the suite with other optimizers between its two."""
    file = folder / f"{name}.yaml"
    file.write_text(SUITE % between)
    words = ["--runs-dir", str(folder / "runs"), "--name", name, "--jobs", "1", "--quiet"]
    assert main(["run", str(file), *words]) in (0, 3)  # what becomes of the trials that patch is their own affair
    return pd.read_parquet(folder / "runs" / name / "accuracy.parquet")


def test_patches_of_a_users_code_reach_no_other_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(PLUGIN)
    users = "\n".join(f"  {name.lower()}: {{target: {mine}:{name}, lr: 0.1}}" for name in ("Patching", "Plain"))
    clean, among = accuracies(tmp_path, "clean"), accuracies(tmp_path, "among", users)
    both = among[among.optimizer.isin(["first", "last"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, clean, check_exact=True)
    # Another class of the user's is SGD, and no patched one.
    first, plain = (among[among.optimizer == name].accuracy.tolist() for name in ("first", "plain"))
    assert plain == first
    assert len(first) >= 2 * 2 * 3
