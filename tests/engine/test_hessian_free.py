"""Hessian-free optimization: products equal those of the Fisher matrix, and a step solves the damped system."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from optbench.data import Dataset
from optbench.optimizers.hessian_free import HessianFree
from tests.conftest import same_bits, small_suite, train_suite, trial_row


def network(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64))
    return model


X = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(9) % 5


def closure_of(model: nn.Module) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    return closure


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def fisher(model: nn.Module) -> Tensor:
    """Return the dense matrix E[Jᵀ (diag p - p pᵀ) J] by definition."""
    weights = dict(model.named_parameters())
    jacobians = jacrev(lambda w: functional_call(model, w, (X,)))(weights)
    rows = torch.cat([jacobians[name].detach().flatten(2) for name in weights], 2)
    total = torch.zeros(rows.shape[2], rows.shape[2], dtype=torch.float64)
    for j, logits in zip(rows, model(X).detach(), strict=True):
        p = logits.softmax(0)
        total += j.T @ (torch.diag(p) - torch.outer(p, p)) @ j / len(X)
    return total


def gradient_of(model: nn.Module) -> Tensor:
    closure_of(model)()
    return flat([p.grad for p in model.parameters() if p.grad is not None])


def test_with_enough_iterations_the_step_is_the_damped_natural_gradient() -> None:
    model = network()
    gradient, matrix, before = gradient_of(model), fisher(model), flat(list(model.parameters()))
    optimizer = HessianFree(model, lr=0.01, damping=0.1, adapt_damping=False, iterations=200, tolerance=1e-12)
    closure = closure_of(model)
    closure()
    optimizer.step(closure)
    moved = flat(list(model.parameters())) - before
    expected = torch.linalg.solve(matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64), -gradient)
    torch.testing.assert_close(moved, 0.01 * expected, rtol=1e-6, atol=1e-12)


def test_one_iteration_is_the_steepest_descent_of_the_quadratic_model() -> None:
    model = network()
    gradient, matrix, before = gradient_of(model), fisher(model), flat(list(model.parameters()))
    optimizer = HessianFree(model, lr=0.01, damping=0.1, adapt_damping=False, iterations=1)
    closure = closure_of(model)
    closure()
    optimizer.step(closure)
    matrix = matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64)
    length = gradient @ gradient / (gradient @ matrix @ gradient)
    torch.testing.assert_close(flat(list(model.parameters())) - before, -0.01 * length * gradient)


@pytest.mark.parametrize(("damping", "factor"), [(10.0, 2 / 3), (1e-6, 3 / 2)], ids=["trusted", "distrusted"])
def test_damping_follows_the_reduction_ratio(damping: float, factor: float) -> None:
    # With much damping the quadratic model is accurate; with little the step leaves the region where it holds.
    model = network(seed=3)
    optimizer = HessianFree(model, damping=damping, adapt_damping=True, iterations=50)
    closure = closure_of(model)
    closure()
    optimizer.step(closure)
    assert optimizer.param_groups[0]["damping"] == pytest.approx(damping * factor)


def test_the_loss_of_the_mini_batch_never_increases() -> None:
    model = network(seed=3)
    optimizer = HessianFree(model, damping=1e-6, adapt_damping=True, iterations=50)
    closure = closure_of(model)
    losses = []
    for _ in range(12):
        closure()
        optimizer.step(closure)
        losses.append(closure().item())
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_a_step_without_a_closure_is_refused() -> None:
    model = network()
    closure_of(model)()
    with pytest.raises(TypeError, match="expected a closure"):
        HessianFree(model).step()


def test_a_trial_alone_equals_the_trial_in_a_cohort(mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": "hessian-free", "damping": [1.0, 10.0]}}, seeds=2, max_epochs=1)
    together = train_suite(suite, mnist)
    for result in together:
        assert trial_row(result).status == "ok"
    assert same_bits(train_suite(suite, mnist, only=1)[0], together[1])


@pytest.mark.parametrize("target", ["hessian-free", "adahessian"])
def test_attention_can_be_differentiated_twice(target: str, mnist: Dataset) -> None:
    """The fused attention kernel does not support this."""
    if target == "adahessian":
        pytest.importorskip("pytorch_optimizer")
    model = {"kind": "vit", "layers": 1, "width": 8, "heads": 2, "patch": 14}
    short: dict[str, Any] = {
        "early_stopping": None,
        "max_steps": 2,
        "train_examples": 64,
        "test_examples": 20,
        "validation_examples": 20,
    }
    (result,) = train_suite(small_suite({"opt": {"target": target}}, model=model, seeds=1, **short), mnist)
    assert trial_row(result).status == "ok", trial_row(result).error_message
