"""A reduced version of suite `cifar` from the command line, on data made for the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli import main
from optbench.store import read_run

FAKE = """
import torch
import optbench

def images(classes=10):
    halves = []
    for seed, per_class in enumerate((12, 4)):
        targets = torch.arange(classes).repeat_interleave(per_class)
        drawn = torch.Generator().manual_seed(seed)
        shape = (len(targets), 3, 32, 32)
        halves.append(optbench.Split(torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn), targets))
    return optbench.Dataset("fake", *halves, classes=classes)
"""
SMALL = (
    "models.resnet.depth=8", "models.resnet.width=4", "protocol.batch_size=10", "protocol.max_epochs=1",
    "protocol.evaluate_every=1", "protocol.max_steps=2", "protocol.validation_examples=10", "metrics=[effective_rank]",
    "dataset=./fake.py:images",
)  # fmt: skip


@pytest.mark.slow
def test_a_reduced_cifar_suite_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fake.py").write_text(FAKE)
    sets = [f"experiments.{name}.{one}" for name in ("split-cifar100", "rotated-cifar10") for one in SMALL]
    sets += ["experiments.split-cifar100.tasks.group_size=5", "experiments.rotated-cifar10.tasks.angles=[0, 30]"]
    words = ["run", "cifar", "--seeds", "1", "--optimizer", "sgd", "--optimizer", "adamw", "--jobs", "1", "--quiet"]
    words += ["--device", "cpu", "--name", "small", *(word for one in sets for word in ("--set", one))]
    assert main(words) == 0
    trials = read_run(Path("runs/small")).table("trials").to_pandas()
    assert trials["status"].tolist() == ["ok"] * 4
    assert set(trials["steps"]) == {4}
