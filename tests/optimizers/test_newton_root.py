"""Inverse roots computed by matrix products only agree with eigendecompositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import fractional_matrix_power
from torch import Tensor

from optbench.optimizers.newton_root import iterations_for, largest_eigenvalue, newton_inverse_root
from optbench.optimizers.roots import update_inverse_roots
from tests.optimizers.test_roots import positive


def roots_of(factors: Tensor, order: int, epsilon: float) -> tuple[Tensor, Tensor]:
    spread = torch.full((len(factors),), epsilon, dtype=torch.float64)
    return newton_inverse_root(factors, order, spread, iterations_for(order, epsilon))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 12),
    order=st.sampled_from([1, 2, 3, 4, 6]),
    epsilon=st.sampled_from([1e-8, 1e-6, 1e-4, 1e-2, 1.0]),
    rank=st.integers(1, 14),
    size=st.sampled_from([1e-12, 1.0, 1e9]),
    seed=st.integers(0, 2**31),
)
def test_root_agrees_with_scipy(n: int, order: int, epsilon: float, rank: int, size: float, seed: int) -> None:
    factors = size * positive(2, n, rank, seed)
    found, converged = roots_of(factors, order, epsilon)
    assert converged.all()
    largest = largest_eigenvalue(factors)
    for root, factor, most in zip(found, factors, largest.tolist(), strict=True):
        raised = factor.numpy() + epsilon * most * np.eye(n)
        expected = fractional_matrix_power(raised, -1 / order)
        error = np.abs(root.numpy() - expected).max() / np.abs(expected).max()
        assert error < 1e-12 / epsilon + 1e-10


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), rank=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_the_bound_on_the_largest_eigenvalue_is_tight(n: int, rank: int, seed: int) -> None:
    factors = positive(3, n, rank, seed)
    exact = torch.linalg.eigvalsh(factors)[:, -1]
    ratio = largest_eigenvalue(factors) / exact
    assert (ratio >= 1 - 1e-12).all()
    assert (ratio <= n ** (1 / 256) + 1e-12).all()
    assert largest_eigenvalue(torch.eye(n).double()[None]).item() == pytest.approx(n ** (1 / 256))


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-3])
def test_the_number_of_iterations_is_necessary_and_sufficient(order: int, epsilon: float) -> None:
    enough = iterations_for(order, epsilon)
    factors = torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))[None]
    spread = torch.tensor([epsilon], dtype=torch.float64)
    assert newton_inverse_root(factors, order, spread, enough)[1].item()
    assert not newton_inverse_root(factors, order, spread, enough - 5)[1].item()
    # Each iteration multiplies the smallest eigenvalue by (1 + 1/p)^p, which gives the number for a factor of 400.
    more = iterations_for(order, epsilon / 400) - enough
    assert more == pytest.approx(np.log(400) / (order * np.log1p(1 / order)), abs=1)


def test_a_zero_matrix_has_root_zero_and_does_not_affect_others() -> None:
    factors = positive(4, 6, 3, 0)
    alone, _ = roots_of(factors, 4, 1e-4)
    factors[1] = 0.0
    factors[2] = float("nan")
    found, converged = roots_of(factors, 4, 1e-4)
    assert converged.tolist() == [True, True, False, True]
    assert (found[1] == 0).all()
    for i in (0, 3):
        assert torch.equal(found[i], alone[i])


@pytest.mark.parametrize("diagonal", [False, True])
def test_updated_roots_are_scaled_and_failed_ones_are_kept(diagonal: bool) -> None:
    factors = positive(3, 7, 9, 1)
    if diagonal:
        factors = factors.diagonal(dim1=1, dim2=2).clone()
    factors[1] = float("inf")
    kept = torch.full_like(factors, 3.0, dtype=torch.float32)
    scale = torch.tensor([2.0, 1.0, 0.25], dtype=torch.float64)
    who = update_inverse_roots(kept, factors, 4, 1e-4, scale, newton=1e-4)
    assert who.tolist() == [False, True, False]
    assert (kept[1] == 3.0).all()
    for i in (0, 2):
        matrix = factors[i].diag() if diagonal else factors[i]
        most = float(factors[i].max() if diagonal else largest_eigenvalue(matrix[None]))
        expected = fractional_matrix_power(float(scale[i]) * (matrix.numpy() + 1e-4 * most * np.eye(7)), -1 / 4)
        found = kept[i].diag() if diagonal else kept[i]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_root_that_fails_in_single_precision_is_not_used() -> None:
    factors = positive(1, 60, 5, 2)
    root = torch.full((1, 60, 60), 3.0)
    who = update_inverse_roots(root, factors, 4, 1e-12, 1.0, newton=1e-12, precision=torch.float32)
    assert who.tolist() == [True]
    assert (root == 3.0).all()


def test_single_precision_is_close_and_falls_back_to_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = positive(2, 30, 40, 3)
    exact, single, helped = torch.zeros(3, 2, 30, 30, dtype=torch.float64).unbind()
    update_inverse_roots(exact, factors, 4, 1e-4)
    update_inverse_roots(single, factors, 4, 1e-4, precision=torch.float32)
    assert not torch.equal(single, exact)
    torch.testing.assert_close(single, exact, rtol=1e-3, atol=1e-4)
    decompose = torch.linalg.eigh

    def fails_in_single(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("no convergence")
        found: tuple[Tensor, Tensor] = decompose(matrix)
        return found

    monkeypatch.setattr(torch.linalg, "eigh", fails_in_single)
    assert not update_inverse_roots(helped, factors, 4, 1e-4, precision=torch.float32).any()
    assert torch.equal(helped, exact)


def test_a_member_alone_equals_the_member_among_others() -> None:
    """The number of iterations depends only on the ε of the member."""
    factors = positive(3, 64, 80, 4)
    epsilon = torch.tensor([1e-2, 1e-9, 1e-4], dtype=torch.float64)
    together = torch.zeros(3, 64, 64, dtype=torch.float64)
    update_inverse_roots(together, factors, 4, epsilon, newton=1e-9)
    for i in range(3):
        alone = torch.zeros(1, 64, 64, dtype=torch.float64)
        update_inverse_roots(alone, factors[i : i + 1].clone(), 4, epsilon[i : i + 1], newton=float(epsilon[i]))
        assert torch.equal(alone[0], together[i])
