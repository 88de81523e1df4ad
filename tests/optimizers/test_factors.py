"""Accumulated factors agree with float64 sums, and the detection of stale roots agrees with eigenvalues."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optbench.optimizers import factors
from optbench.optimizers.factors import Factor, _stretched, begin, outgrown, refresh
from optbench.optimizers.shampoo import Shampoo
from optbench.optimizers.symmetric import PANEL, add_gram, whole

pytestmark = pytest.mark.usefixtures("one_thread")


EPSILON = torch.tensor([1e-4], dtype=torch.float64)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def begun(rows: Tensor, order: int = 4, **settings: Any) -> Factor:
    state: dict[str, Any] = {}
    options = {"diagonal": False, "single": [True] * len(rows), "by_need": False} | settings
    begin(state, "left", rows, torch.full((len(rows),), 0.5, dtype=torch.float64), **options)
    return factors.factor_of(state, "left", order)


def accumulate(factor: Factor, rows: Tensor, decay: Tensor, weight: Tensor, single: list[bool]) -> None:
    factors.accumulate(factor, rows, decay, weight, single, rows.abs().amax((1, 2)).tolist())


def refreshed(factor: Factor, members: list[int], epsilon: float = 1e-4, correction: float = 1.0) -> Tensor:
    count = len(factor.total)
    numbers = [torch.full((count,), x, dtype=torch.float64) for x in (epsilon, correction)]
    return refresh(factor, members, *numbers, None, [torch.float64] * count)


@pytest.mark.parametrize("n", [5, PANEL + 20])
@pytest.mark.parametrize("single", [[True] * 3, [False] * 3, [True, False, True]])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_factor_equals_the_decayed_sum_of_products(n: int, single: list[bool], diagonal: bool) -> None:
    decay, weight = torch.tensor([1.0, 0.9, 0.0]).double(), torch.tensor([1.0, 0.1, 1.0]).double()
    factor = begun(normal(3, n, 4), diagonal=diagonal, single=single)
    expected = 0.5 * torch.eye(n, dtype=torch.float64).repeat(3, 1, 1)
    for step in range(9):
        x = normal(3, n, 4, seed=step)
        accumulate(factor, x, decay, weight, single)
        expected = decay.view(-1, 1, 1) * expected + weight.view(-1, 1, 1) * (x.double() @ x.double().mT)
        if step in (2, 3, 8):
            refreshed(factor, [0, 1, 2])
            wanted = expected.diagonal(dim1=1, dim2=2) if diagonal else expected
            for i in range(3):
                found = factor.total[i] if diagonal else whole(factor.total[i])
                error = (found - wanted[i]).abs().max() / wanted[i].abs().max()
                assert error < (1e-6 if single[i] and not diagonal else 1e-14)


def test_float32_rounding_does_not_accumulate_over_many_roots() -> None:
    factor = begun(normal(1, 30, 8))
    expected = 0.5 * torch.eye(30, dtype=torch.float64)[None]
    one = torch.ones(1, dtype=torch.float64)
    for step in range(2000):
        x = normal(1, 30, 8, seed=step)
        accumulate(factor, x, one, one, [True])
        expected += x.double() @ x.double().mT
        if step % 50 == 49:
            refreshed(factor, [0])
    assert (whole(factor.total[0]) - expected[0]).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("by_need", [True, False])
def test_members_of_mixed_precision_have_the_same_bits_as_alone(by_need: bool) -> None:
    single, n = [True, False, True], 140
    together = begun(normal(3, n, 6), single=single, by_need=by_need)
    alone = [begun(normal(1, n, 6), single=[fits], by_need=by_need) for fits in single]
    assert together.growth is not None
    assert together.growth.dtype == (torch.float64 if by_need else torch.float32)
    decay = torch.full((3,), 0.99, dtype=torch.float64)
    for step in range(4):
        x = normal(3, n, 6, seed=step)
        accumulate(together, x, decay, 1 - decay, single)
        for i, factor in enumerate(alone):
            accumulate(factor, x[i : i + 1], decay[:1], 1 - decay[:1], [single[i]])
        if step == 1:
            refreshed(together, [0, 2])
            for i in (0, 2):
                refreshed(alone[i], [0])
    for i, factor in enumerate(alone):
        assert torch.equal(together.total[i], factor.total[0])
        assert torch.equal(together.root[i], factor.root[0])
        if factor.growth is not None:
            assert torch.equal(together.growth[i].to(factor.growth.dtype), factor.growth[0])


@pytest.mark.parametrize("size", [1e-24, 1e-10, 1e19])
@pytest.mark.parametrize("settings", [{"precondition_frequency": "auto"}, {"precondition_frequency": 3}])
def test_steps_do_not_depend_on_the_size_of_gradients(size: float, settings: dict[str, Any]) -> None:
    """Squares of gradients overflow or underflow in float32 while the roots of factors do not."""
    moved = []
    for times in (1.0, size):
        parameters = [nn.Parameter(torch.zeros(8, 150)), nn.Parameter(torch.zeros(8))]
        optimizer = Shampoo(parameters, lr=1.0, epsilon=1e-4, initial_epsilon=0.0, **settings)
        for step in range(12):
            for parameter in parameters:
                parameter.grad = (normal(*parameter.shape, seed=step).double() * times).float()
            optimizer.step()
        assert optimizer.fallbacks().tolist() == [0]
        moved.append([parameter.detach() for parameter in parameters])
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-3)


def test_a_gradient_spike_decays_as_in_float64() -> None:
    weights = []
    for precision in ("auto", "float64"):
        parameter = nn.Parameter(torch.zeros(6, 7))
        optimizer = Shampoo([parameter], lr=1.0, epsilon=1e-4, root_precision=precision)
        for step in range(12):
            parameter.grad = normal(6, 7, seed=step) * (1e20 if step == 5 else 1.0)
            optimizer.step()
        assert optimizer.fallbacks().tolist() == [0]
        weights.append(parameter.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("diagonal", [False, True])
def test_batched_accumulation_agrees_with_one_by_one(diagonal: bool) -> None:
    decay, weight = torch.tensor([1.0, 0.9]).double(), torch.tensor([1.0, 0.1]).double()
    one, batched = (begun(normal(2, 6, 4), diagonal=diagonal, single=[False] * 2) for _ in range(2))
    for step in range(5):
        x = normal(2, 6, 4, seed=step)
        accumulate(one, x, decay, weight, [False] * 2)
        factors._accumulate_batched(batched, x, decay, weight)
    torch.testing.assert_close(batched.total, one.total)


def test_a_state_from_a_cpu_is_complete_on_a_device_that_adds_products_directly() -> None:
    n = PANEL + 5
    state: dict[str, Any] = {}
    begin(state, "left", normal(2, n, 3), torch.zeros(2).double(), diagonal=False, single=[True] * 2, by_need=True)
    x, one = normal(2, n, 3), torch.ones(2, dtype=torch.float64)
    accumulate(factors.factor_of(state, "left", 4), x, one, one, [True] * 2)
    factors.moved(state, "left")
    assert state.keys() == {"left", "left_root"}
    torch.testing.assert_close(state["left"], x.double() @ x.double().mT, rtol=1e-6, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- stale


def seen_through(factor: Factor, i: int, epsilon: float = 1e-4) -> Tensor:
    """Return the eigenvalues of R^(p/2) L R^(p/2), where R is the root of the earlier factor."""
    assert factor.growth is not None
    half = torch.linalg.matrix_power(factor.root[i].double(), factor.order // 2)
    now = factor.kept[i] * whole(factor.total[i]) + whole(factor.growth[i]).double() / factor.unit[i] ** 2
    return torch.linalg.eigvalsh(half @ now @ half)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("n", [6, PANEL + 12])
def test_the_stretch_is_a_lower_bound_that_converges_quickly(order: int, n: int) -> None:
    basis = torch.linalg.qr(normal(n, n, dtype=torch.float64))[0]
    root = ((basis * torch.logspace(0, 1, n, dtype=torch.float64)) @ basis.mT).float()
    lower, seen = torch.zeros(n, n), torch.zeros(n)
    for step in range(12):
        x = normal(n, 3, seed=step + 50)
        add_gram(lower, x, 1.0, 1.0)
        found, seen = _stretched(root, lower, order, 1.0, seen, x @ torch.tensor([1.0, -1.0, 1.0]))
        half = torch.linalg.matrix_power(root.double(), order // 2)
        exact = torch.linalg.eigvalsh(half @ whole(lower).double() @ half)[-1].item()
        assert found <= exact * 1.0001
        assert found >= exact * (0.5 if step < 2 else 0.6)
        assert torch.linalg.vector_norm(seen).item() == pytest.approx(1, abs=1e-4)


def test_a_new_direction_makes_a_root_stale_immediately() -> None:
    n, share = 20, 1.0
    rows = normal(1, n, 50)
    rows[:, 0] = 0
    factor = begun(rows, by_need=True)
    factor.total.zero_()
    one = torch.ones(1, dtype=torch.float64)
    accumulate(factor, rows, one, one, [True])
    refreshed(factor, [0])
    for step in range(5):  # only known directions, with small gradients
        known = 0.1 * normal(1, n, 1, seed=step)
        known[:, 0] = 0
        accumulate(factor, known, one, one, [True])
        assert outgrown(factor, known, EPSILON, one, share) == []
    new = torch.zeros(1, n, 1)
    new[0, 0] = 0.2
    accumulate(factor, new, one, one, [True])
    assert outgrown(factor, new, EPSILON, one, share) == [0]
    assert seen_through(factor, 0)[-1] > 1 + share


def test_a_decayed_old_or_non_finite_factor_has_a_stale_root() -> None:
    factor = begun(normal(4, 5, 3), by_need=True, single=[False] * 4)
    decay, nothing = torch.tensor([1.0, 0.6, 1.0, 1.0]).double(), torch.zeros(4, 5, 3)
    one = torch.ones(4, dtype=torch.float64)
    refreshed(factor, [0, 1, 2, 3])
    accumulate(factor, nothing, decay, one, [False] * 4)
    assert outgrown(factor, nothing, EPSILON.expand(4), one, 0.5) == [1], "0.6 of the factor is left, less than 1 / 1.5"
    assert outgrown(factor, nothing, EPSILON.expand(4), one, 0.7) == []
    factor.age[2] = factors.LONGEST
    factor.growth[3], factor.unit[3] = float("nan"), 1
    assert outgrown(factor, nothing, EPSILON.expand(4), one, 0.7) == [2, 3]
    assert refreshed(factor, [2, 3]).tolist() == [False, False, False, True]
    assert factor.age.tolist() == [1, 1, 0, 0]


def test_an_average_over_a_constant_second_moment_is_exact_from_the_first_step() -> None:
    n, beta = 6, 0.9
    rows = torch.eye(n)[None]
    factor = begun(rows, by_need=True, single=[False])
    factor.total.zero_()
    decay = torch.tensor([beta]).double()
    for step in range(1, 30):
        accumulate(factor, rows, decay, 1 - decay, [False])
        correction = 1 - decay**step
        if step == 1:
            refreshed(factor, [0], correction=float(correction))
        unit = float(factor.unit[0]) or 1.0
        now = float(factor.kept[0]) * factor.total[0] + factor.growth[0] / unit**2
        torch.testing.assert_close(now / correction, torch.eye(n, dtype=torch.float64))


def sizes_decomposed(monkeypatch: pytest.MonkeyPatch, optimizer: Shampoo, gradients: list[Tensor]) -> list[int]:
    original, seen, steps = torch.linalg.eigh, [0], []

    def watched(matrix: Tensor) -> Any:
        seen[0] += 1
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", watched)
    (parameter,) = optimizer.param_groups[0]["params"]
    for gradient in gradients:
        before = seen[0]
        parameter.grad = gradient
        optimizer.step()
        steps.append(seen[0] - before)
    return steps


def test_on_demand_refreshes_become_rarer_as_a_sum_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.zeros(4, 5))
    optimizer = Shampoo([parameter], epsilon=1e-4, precondition_frequency="auto")
    gradients = [normal(4, 5, seed=step) for step in range(400)]
    steps = sizes_decomposed(monkeypatch, optimizer, gradients)
    quarters = [sum(steps[start : start + 100]) for start in range(0, 400, 100)]
    assert steps[0] == 2
    assert quarters[0] > 5 * quarters[1] >= 0
    assert 4 <= sum(quarters[1:]) <= 20


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(12, 9), (12,)])
def test_on_demand_steps_are_hardly_longer_than_with_fresh_roots(share: float, shape: tuple[int, ...]) -> None:
    """The first rows have no gradient until step 60; an older root would make a step up to ε^(-1/2) times too long."""
    gradients = [normal(*shape, seed=step) for step in range(120)]
    for gradient in gradients[:60]:
        gradient[:6] = 0

    def lengths(**settings: Any) -> list[float]:
        parameter, found = nn.Parameter(torch.zeros(shape)), []
        optimizer = Shampoo([parameter], lr=1.0, epsilon=1e-6, initial_epsilon=0.0, **settings)
        for gradient in gradients:
            before = parameter.detach().clone()
            parameter.grad = gradient.clone()
            optimizer.step()
            found.append(torch.linalg.vector_norm(parameter.detach() - before).item())
        return found

    fresh, by_need = lengths(precondition_frequency=1), lengths(precondition_frequency="auto", refresh_share=share)
    with pytest.warns(UserWarning, match="stale"):
        fixed = lengths(precondition_frequency=50, small_side=0)
    # Each root is at most (1 + share)^(1/p) too long, plus the error of the power iteration.
    assert max(a / b for a, b in zip(by_need, fresh, strict=True)) < (1 + share) ** 0.5 * 1.3
    assert max(a / b for a, b in zip(fixed[60:], fresh[60:], strict=True)) > 10


@pytest.mark.parametrize("shape", [(4, 5), (4,)])
def test_on_demand_a_parameter_learns_once_its_gradients_are_non_zero(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    optimizer = Shampoo([parameter], lr=1.0, initial_epsilon=0.0, precondition_frequency="auto")
    for step in range(4):
        parameter.grad = torch.ones(shape) * (step == 3)
        optimizer.step()
    assert parameter.detach().abs().min() > 0.1


def test_on_demand_with_epsilon_zero_every_step_refreshes() -> None:
    shape, gradients = (4, 5), [normal(4, 5, seed=step) for step in range(5)]
    found = []
    for settings in ({"precondition_frequency": "auto"}, {"precondition_frequency": 1}):
        parameter = nn.Parameter(torch.zeros(shape))
        optimizer = Shampoo([parameter], lr=1.0, epsilon=0.0, **settings)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
def test_on_demand_an_average_follows_gradients_that_become_smaller(beta2: float) -> None:
    lengths = []
    for frequency in ("auto", 1):
        parameter = nn.Parameter(torch.zeros(6, 5))
        optimizer = Shampoo([parameter], lr=1.0, beta2=beta2, epsilon=1e-4, precondition_frequency=frequency)
        for step in range(400):
            before = parameter.detach().clone()
            parameter.grad = normal(6, 5, seed=step) * (0.01 if step >= 50 else 1.0)
            optimizer.step()
        lengths.append(torch.linalg.vector_norm(parameter.detach() - before).item())
    assert 0.7 < lengths[0] / lengths[1] < 1.4
