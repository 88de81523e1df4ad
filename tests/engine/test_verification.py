"""`elementwise: true` is verified on the gradients of the trials; if it is wrong, each trial gets its own instance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.optimizers.make import is_elementwise
from optbench.optimizers.registry import find
from optbench.suite import Suite
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.engine.test_interim import cut_and_whole

FILE = """
import torch

class Base(torch.optim.Optimizer):
    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
    def count(self): ...
    @torch.no_grad()
    def step(self, closure=None):
        self.count()
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                p.sub_(self.shaped(p, m), alpha=group["lr"])

class Kept(Base):
    def shaped(self, p, m): return m

class Counts(Base):
    taken = 0
    def count(self): self.taken += 1
    def shaped(self, p, m): return m / self.taken

class CountsLater(Counts):
    def shaped(self, p, m): return m / max(self.taken - 51, 1)

class Late(Base):
    def late(self, p):
        s = self.state[p]
        s["step"] = s.get("step", 0) + 1
        return s["step"] > 51

class LateNorm(Late):
    def shaped(self, p, m): return m / (1 + 0.1 * m.norm()) if self.late(p) else m

class LateMean(Late):
    def shaped(self, p, m): return m - 0.1 * m.mean(-1, keepdim=True) if self.late(p) else m

class Large(Base):
    def shaped(self, p, m): return m if p.numel() < 500 else m / m.abs().max()

class Wide(Base):
    def shaped(self, p, m): return m if p.shape[-1] < 50 else m * 0.5

class Breaks(Late):
    def shaped(self, p, m):
        if self.late(p) and p.ndim == 1: raise ValueError("no vectors")
        return m

class Norm(Base):
    def shaped(self, p, m): return m / m.norm()

class Matrix(Base):
    def shaped(self, p, m): return m - m.mean(-1, keepdim=True) if p.ndim == 2 else m

class Clips(Base):
    def shaped(self, p, m): return m / max(1.0, float(m.norm()) / 1e6)

class Tiny(Base):
    def shaped(self, p, m): return m if p.grad.norm() > 1e-7 else m * 0
"""
LATER = ["CountsLater", "LateNorm", "LateMean", "Large", "Wide", "Breaks"]
AT_ONCE = ["Counts", "Norm", "Matrix", "Clips", "Tiny"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "elementwise.py"
    path.write_text(FILE)
    return path


def suite_of(plugin: Path, name: str, *, elementwise: bool, **more: Any) -> Suite:
    optimizer = {"target": f"{plugin}:{name}", "lr": [0.05, 0.02], **({"elementwise": True} if elementwise else {})}
    small: dict[str, Any] = {"train_examples": 2000, "early_stopping": None, "max_epochs": 1, "metrics": ["hoyer"]}
    return small_suite({"it": optimizer}, seeds=2, **small, **more)


def undeclared(result: TrialResult) -> TrialResult:
    """Remove the declaration and the note on its refutation from the row of a trial."""
    row = trial_row(result)
    hyperparameters = {k: v for k, v in json.loads(row.hyperparameters).items() if k != "elementwise"}
    plain = dataclasses.replace(row, note=None, hyperparameters=json.dumps(hyperparameters))
    return dataclasses.replace(result, rows=tuple(plain if each is row else each for each in result.rows))


@pytest.mark.parametrize("name", LATER)
def test_an_optimizer_that_proves_not_elementwise_later_gets_instances_and_a_note(
    name: str, plugin: Path, mnist: Dataset
) -> None:
    declared = train_suite(suite_of(plugin, name, elementwise=True), mnist)
    expected = train_suite(suite_of(plugin, name, elementwise=False), mnist)
    for own, other in zip(declared, expected, strict=True):
        note = trial_row(own).note
        assert note is not None
        assert note.startswith("declared elementwise, but trained with one instance per trial: ")
        assert same_bits(undeclared(own), undeclared(other))


def test_an_elementwise_optimizer_stays_in_its_lane(plugin: Path, mnist: Dataset) -> None:
    results = train_suite(suite_of(plugin, "Kept", elementwise=True), mnist)
    assert all(trial_row(result).note is None for result in results)
    apart = train_suite(suite_of(plugin, "Kept", elementwise=False), mnist)
    for own, other in zip(results, apart, strict=True):
        assert own.weights is not None
        assert other.weights is not None
        assert all(torch.allclose(own.weights[name], other.weights[name], atol=1e-3) for name in own.weights)


@pytest.mark.parametrize("name", ["LateNorm", "Kept"])
def test_a_resumed_trial_stays_in_its_lane(name: str, plugin: Path, mnist: Dataset) -> None:
    for _, whole, again in cut_and_whole(suite_of(plugin, name, elementwise=True), mnist):
        assert all(map(same_bits, whole, again))


@pytest.mark.parametrize("name", [*AT_ONCE, "Kept"])
def test_the_check_before_training_uses_gradients_of_all_scales(name: str, plugin: Path) -> None:
    assert is_elementwise(find(f"{plugin}:{name}"), {}) is (name == "Kept")


@pytest.mark.parametrize(
    "target", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Rprop"]
)
def test_the_check_accepts_elementwise_optimizers(target: str) -> None:
    assert is_elementwise(find(f"torch.optim:{target}"), {"foreach": False})
