"""Powerpropagation and power-SGD follow the same gradient flow; L1 is the proximal step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from optbench.data import Dataset
from optbench.errors import OptimizerError
from optbench.optimizers.l1 import L1
from optbench.optimizers.power_sgd import PowerSgd
from optbench.optimizers.powerpropagation import Powerpropagation
from optbench.optimizers.powers import power
from tests.conftest import same_bits, small_suite, train_suite, trial_row

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 0.5).long()


def network() -> nn.Sequential:
    """Return a smooth network, so that the paths of two discretisations can be compared."""
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64) / 2)
    return model


def train(model: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
    for _ in range(steps):
        model.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weights_of(model)


def weights_of(model: nn.Sequential) -> Tensor:
    """Return weights and biases of both layers."""
    return torch.cat([getattr(model[k], part).detach().flatten() for k in (0, 2) for part in ("weight", "bias")])


class Power(nn.Module):
    """The reparameterisation w = φ |φ|^(α-1) by `torch.nn.utils.parametrize`."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, root: Tensor) -> Tensor:
        return root * root.abs() ** (self.alpha - 1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.sign() * weight.abs() ** (1 / self.alpha)


@pytest.mark.parametrize("base", [{"target": "sgd", "lr": 0.05, "momentum": 0.9}, {"target": "adam", "lr": 0.01}])
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 4.0])
def test_powerpropagation_equals_the_reparameterised_network(alpha: float, base: dict[str, Any]) -> None:
    model, twin = network(), network()
    found = train(model, Powerpropagation(model.parameters(), base, alpha), 60)
    for layer in (twin[0], twin[2]):
        parametrize.register_parametrization(layer, "weight", Power(alpha))
    cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[base["target"]]
    settings = {name: value for name, value in base.items() if name != "target"}
    # With its epsilon Adam depends slightly on the size of gradients; the order of parameters does not matter.
    expected = train(twin, cls(twin.parameters(), **settings), 60)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def gap(alpha: float, beta: float, lr: float, time: float = 3.0) -> float:
    """Return the relative distance of the twins' weights after training for `time` = steps · lr of φ."""
    steps = round(time / lr)
    a, b = network(), network()
    start = weights_of(a)
    base = {"target": "sgd", "lr": lr}
    first = train(a, Powerpropagation(a.parameters(), base, alpha), steps)
    other = PowerSgd(b.parameters(), lr=alpha**2 * lr, beta=beta, bias_scale=alpha**-2)
    second = train(b, other, steps)
    return float((first - second).norm() / (first - start).norm())


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 4.0])
def test_the_twins_follow_the_same_path_with_an_error_that_halves_with_the_step(alpha: float) -> None:
    gaps = [gap(alpha, 2 - 2 / alpha, lr) for lr in (0.02, 0.01, 0.005)]
    assert gaps[-1] < 0.02
    for coarse, fine in pairwise(gaps):
        assert coarse / fine == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("alpha", [1.5, 3.0, 4.0])
@pytest.mark.parametrize("reading", ["alpha - 1", "1 - 1/alpha"])
def test_other_interpretations_of_the_power_are_not_twins(alpha: float, reading: str) -> None:
    beta = {"alpha - 1": alpha - 1, "1 - 1/alpha": 1 - 1 / alpha}[reading]
    gaps = [gap(alpha, beta, lr) for lr in (0.02, 0.01, 0.005)]
    assert gaps[-1] > 0.05
    for coarse, fine in pairwise(gaps):
        assert coarse / fine < 1.3, "a smaller step does not bring them closer"


def test_at_alpha_2_one_of_the_other_interpretations_is_the_same() -> None:
    assert 2 - 2 / 2.0 == 2.0 - 1


def test_an_exact_zero_never_moves_and_biases_follow_the_base() -> None:
    weight, bias = nn.Parameter(torch.tensor([[0.0, 0.5]])), nn.Parameter(torch.tensor([0.25]))
    optimizer = Powerpropagation([weight, bias], {"target": "sgd", "lr": 0.1}, alpha=2.0)
    weight.grad, bias.grad = torch.tensor([[3.0, 1.0]]), torch.tensor([2.0])
    optimizer.step()
    assert weight[0, 0].item() == 0
    # φ = √.5 has gradient 2 φ g and becomes φ - .1 · 2 φ, which is then squared.
    assert weight[0, 1].item() == pytest.approx((math.sqrt(0.5) * (1 - 0.2)) ** 2)
    assert bias.item() == pytest.approx(0.05)


def test_weights_set_from_outside_are_adopted() -> None:
    # Early stopping restores the best weights.
    model, fresh = network(), network()
    used = Powerpropagation(model.parameters(), {"target": "sgd", "lr": 0.1}, alpha=3.0)
    train(model, used, 5)
    model.load_state_dict(fresh.state_dict())
    new = Powerpropagation(fresh.parameters(), {"target": "sgd", "lr": 0.1}, alpha=3.0)
    assert torch.equal(train(model, used, 5), train(fresh, new, 5))


@pytest.mark.parametrize("wrapper", ["powerpropagation", "l1"])
def test_a_wrapped_trial_alone_equals_the_trial_in_a_cohort(wrapper: str, mnist: Dataset) -> None:
    swept = {"powerpropagation": {"alpha": [1.0, 2.0, 5.0]}, "l1": {"strength": [0.0, 1e-3, 1e-2]}}[wrapper]
    suite = small_suite({"opt": {"target": wrapper, "base": {"target": "sgd", "lr": 0.1}, **swept}}, seeds=2)
    together = train_suite(suite, mnist)
    assert {trial_row(result).status for result in together} == {"ok"}
    for i in (0, 3):
        assert same_bits(train_suite(suite, mnist, only=i)[0], together[i])


def test_alpha_1_and_penalty_0_equal_the_base(mnist: Dataset) -> None:
    base = {"target": "sgd", "lr": 0.1}
    suite = small_suite(
        {
            "base": base,
            "power": {"target": "powerpropagation", "alpha": 1.0, "base": base},
            "l1": {"target": "l1", "strength": 0.0, "base": base},
        },
        seeds=1,
        early_stopping=None,
    )
    plain, power, l1 = train_suite(suite, mnist)
    for other in (power, l1):
        assert plain.weights is not None
        assert other.weights is not None
        for name, weight in plain.weights.items():
            assert torch.equal(weight, other.weights[name]), name


def test_l1_agrees_with_a_hand_computed_step() -> None:
    weight, bias = nn.Parameter(torch.tensor([[0.5, -0.5, 0.04]])), nn.Parameter(torch.tensor([0.01]))
    optimizer = L1([weight, bias], {"target": "sgd", "lr": 0.1}, strength=0.5)
    weight.grad, bias.grad = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0.0])
    optimizer.step()
    # A step of .1 and then a shrinkage by at most .05 towards zero; the bias is not shrunk.
    torch.testing.assert_close(weight.detach(), torch.tensor([[0.35, -0.55, 0.0]]))
    assert weight[0, 2].item() == 0
    assert bias.item() == pytest.approx(0.01)


def test_l1_finds_the_solution_of_the_lasso() -> None:
    # The minimum of ½‖Xw - y‖²/n + λ‖w‖₁ found by proximal descent satisfies its optimality conditions.
    random = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=random, dtype=torch.float64)
    y = x[:, 0] * 2 - x[:, 3] + 0.1 * torch.randn(50, generator=random, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(1, 8, dtype=torch.float64))
    optimizer = L1([weight], {"target": "sgd", "lr": 0.1}, strength=0.2)
    for _ in range(3000):
        weight.grad = ((x @ weight[0] - y) @ x / 50).detach().unsqueeze(0)
        optimizer.step()
    slope = (x @ weight[0] - y).detach() @ x / 50
    chosen = weight[0].detach() != 0
    assert chosen.nonzero().flatten().tolist() == [0, 3]
    torch.testing.assert_close(slope[chosen], -0.2 * weight[0].detach()[chosen].sign(), atol=1e-6, rtol=0)
    assert slope[~chosen].abs().max() <= 0.2


def test_l1_over_a_base_without_a_learning_rate_is_refused() -> None:
    with pytest.raises(OptimizerError, match="l1 cannot wrap sam"):
        L1([nn.Parameter(torch.ones(2, 2))], {"target": "sam", "base": {"target": "sgd", "lr": 0.1}})


@given(
    st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=20),
    st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), st.floats(0, 6, width=32)),
    st.booleans(),
)
def test_fast_powers_agree_with_exact_powers(sizes: list[float], exponent: float, stacked: bool) -> None:
    size = torch.tensor(sizes)
    expected = size.double().pow(exponent)
    found = power(size, torch.tensor([exponent]) if stacked else exponent)
    # The argument of 2^x is rounded once, by at most 150 · 6e-8. Values below 1e-37 underflow in float32.
    torch.testing.assert_close(found.double(), expected, rtol=5e-5, atol=1e-37)
    assert torch.equal(found[size == 0], torch.full_like(found[size == 0], 1.0 if exponent == 0 else 0.0))
