"""SGD with decoupled weight decay: its formula, pytorch-optimizer's version, and PyTorch's coupled decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.optimizers.sgdw import Sgdw

SETTINGS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}


def path(cls: Any, **settings: Any) -> Tensor:
    """Return the weights after each of eight steps with fixed gradients."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7, generator=draws, dtype=torch.float64))
    optimizer, found = cls([weight], **settings), []
    for _ in range(8):
        weight.grad = torch.randn(7, generator=draws, dtype=torch.float64)
        optimizer.step()
        found.append(weight.detach().clone())
    assert optimizer.param_groups[0]["weight_decay"] == settings["weight_decay"]
    return torch.stack(found)


def test_sgdw_agrees_with_its_formula() -> None:
    draws = torch.Generator().manual_seed(0)
    w = torch.randn(7, generator=draws, dtype=torch.float64)
    velocity = torch.zeros(7, dtype=torch.float64)
    for expected in path(Sgdw, **SETTINGS):
        g = torch.randn(7, generator=draws, dtype=torch.float64)
        velocity = 0.9 * velocity + g
        w = w - 0.1 * 0.3 * w - 0.1 * velocity
        torch.testing.assert_close(expected, w)


def test_sgdw_agrees_with_pytorch_optimizer() -> None:
    reference = pytest.importorskip("pytorch_optimizer").SGDW
    torch.testing.assert_close(path(Sgdw, **SETTINGS), path(reference, **SETTINGS))


def test_decoupled_decay_equals_coupled_decay_only_without_momentum() -> None:
    plain = {**SETTINGS, "momentum": 0.0}
    torch.testing.assert_close(path(Sgdw, **plain), path(torch.optim.SGD, **plain))
    assert (path(Sgdw, **SETTINGS) - path(torch.optim.SGD, **SETTINGS))[-1].norm() > 0.1
    without = {**SETTINGS, "weight_decay": 0.0}
    assert torch.equal(path(Sgdw, **without), path(torch.optim.SGD, **without))
