"""A small trained run for exports, with trials of every status and a user's metrics and optimizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from optbench.cli import main

MINE = """
import optbench, torch

@optbench.metric(of="weights", direction="lower")
def largest(weights, power=1):
    return max(w.abs().max() for w in weights.values()) ** power

class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("a shape is <b>wrong</b>")
"""
SUITE = """
name: tracked
seeds: 2
optimizers:
  sgd: {target: sgd, lr: [0.1, 0.2]}
  kept: {target: l2-init, base: {target: adam, lr: 0.003}}
  explodes: {target: sgd, lr: 1.0e+30}
  broken: {target: "./mine.py:Broken", lr: 0.1}
experiments:
  small:
    tasks: {kind: permuted, count: 3}
    models: {net: {kind: mlp, hidden: [6]}}
    protocol:
      {max_steps: 10, evaluate_every: 0.4, train_examples: 320, validation_examples: 64, test_examples: 100,
       batch_size: 32, early_stopping: false}
    metrics: [default, online_accuracy, "./mine.py:largest", {kind: "./mine.py:largest", power: 2}]
    primary: [largest, forgetting]
    pairs: {against: [kept], metrics: [linear_cka]}
"""


def tracked_run(folder: Path) -> Path:
    """Train and return the run directory `folder/tracked`."""
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    (folder / "tracked.yaml").write_text(SUITE, encoding="utf-8")
    words = ["run", str(folder / "tracked.yaml"), "--runs-dir", str(folder), "--name", "tracked", "--device", "cpu"]
    assert main([*words, "--quiet"]) == 3  # exit code 3: some trials failed
    return folder / "tracked"


def trials(run: Path) -> pd.DataFrame:
    """Return the table `trials` without controls, indexed by id."""
    table = pd.read_parquet(run / "trials.parquet")
    return table[table.stage != "control"].set_index("trial")


def logged_series(run: Path, trial: str) -> dict[str, list[tuple[int, float]]]:
    """Map each name to the positions and values of a trial, read from its tables with pandas."""
    found: dict[str, list[tuple[int, float]]] = {}

    def put(name: str, at: int, value: float | None) -> None:
        if not pd.isna(value):
            found.setdefault(name, []).append((int(at), float(value)))

    tables = {name: pd.read_parquet(run / f"{name}.parquet") for name in ("curves", "accuracy", "online")}
    curves, accuracy, online = (table[table.trial == trial] for table in tables.values())
    before = {task: curves[curves.task < task].groupby("task").step.max().sum() for task in curves.task.unique()}
    for row in curves.sort_values(["task", "step"]).to_dict("records"):
        for name in ("task", "step", "epoch", "train_loss", "eval_loss", "eval_accuracy", "lr"):
            put(f"curves/{name}", before[row["task"]] + row["step"], row[name])
    for row in accuracy.sort_values(["after_task", "task"]).to_dict("records"):
        for name in ("accuracy", "loss", "validation_accuracy", "validation_loss"):
            put(f"{name}/task_{row['task']}", row["after_task"], row[name])
    for row in online.sort_values("task").to_dict("records"):
        for name in ("accuracy", "loss"):
            put(f"online/online_{name}", row["task"], row[f"online_{name}"])
        for name in ("dead", "dormant", "effective_rank", "weight_magnitude", "gradient_norm"):
            put(f"online/{name}", row["task"], row[name])
    return found


def single(value: float) -> float:
    """Return the nearest float32 as a Python float."""
    return float(np.float32(value))
