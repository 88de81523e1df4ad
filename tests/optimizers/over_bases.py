"""Helpers for tests of wrappers that leave the steps to their base: bases in every lane, and a short training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn, optim

from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.suite import Suite
from tests.conftest import train_suite, trial_row
from tests.twin import train_twin

SGD: dict[str, Any] = {"target": "sgd", "lr": 0.1, "momentum": 0.5}
BASES: dict[str, dict[str, Any]] = {
    "sgd": SGD,
    "adamw": {"target": "adamw", "lr": 2e-3},
    "shampoo": {"target": "shampoo", "lr": 0.1, "precondition_frequency": 400, "structure": "diagonal-factor"},
    "soap": {"target": "soap", "lr": 3e-3, "max_precondition_dim": 128},
    "sam": {"target": "sam", "base": SGD},
    "kfac": {"target": "kfac", "lr": 0.1},
    "lbfgs": {"target": "lbfgs", "lr": 0.1},
    "yours": {"target": "torch.optim:SGD", "lr": 0.1, "elementwise": True},
}
SHORT: dict[str, Any] = {
    "train_examples": 200,
    "test_examples": 100,
    "validation_examples": 50,
    "max_epochs": 1,
    "early_stopping": None,
}


def needed(base: str) -> None:
    if base == "soap":
        pytest.importorskip("pytorch_optimizer")


def weights_of(result: TrialResult) -> dict[str, Tensor]:
    assert trial_row(result).status == "ok", trial_row(result).error_message
    assert result.weights is not None
    return result.weights


def distance_from_plain_loops(suite: Suite, mnist: Dataset, make: Callable[[nn.Module, int], optim.Optimizer]) -> float:
    """Return the largest distance of a weight tensor from that of a plain loop, relative to the distance moved."""
    found = []
    for result in train_suite(suite, mnist):
        seed = result.trial.seed
        start, weights, _ = train_twin(suite, mnist, seed, lambda network, seed=seed: make(network, seed))
        theirs = weights_of(result)
        found += [float((theirs[k] - w).norm() / (w - start[k]).norm()) for k, w in weights.items()]
    return max(found)
