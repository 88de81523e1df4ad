"""Inverse roots agree with SciPy, and singular or non-finite matrices are handled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import fractional_matrix_power
from torch import Tensor

from optbench.optimizers import roots as module
from optbench.optimizers.roots import (
    inverse_root_of_spectrum,
    norms,
    own_memory,
    precondition_batched,
    precondition_each,
    update_inverse_roots,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def positive(members: int, n: int, rank: int, seed: int) -> Tensor:
    """Return float64 positive semidefinite matrices (members, n, n) of the given rank."""
    x = torch.randn(members, n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.mT


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 9),
    order=st.sampled_from([1, 2, 4, 6]),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_root_agrees_with_scipy(n: int, order: int, scale: float, seed: int) -> None:
    factors = positive(2, n, n + 3, seed) + 0.1 * torch.eye(n, dtype=torch.float64)
    result = torch.zeros_like(factors)
    assert not update_inverse_roots(result, factors, order, scale=scale).any()
    for root, factor in zip(result, factors, strict=True):
        expected = fractional_matrix_power(scale * factor.numpy(), -1 / order)
        np.testing.assert_allclose(root.numpy(), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_power_of_root_undoes_matrix() -> None:
    factors = positive(3, 12, 20, 0)
    result = torch.zeros_like(factors)
    update_inverse_roots(result, factors, 4)
    identity = torch.linalg.matrix_power(result, 4) @ factors
    torch.testing.assert_close(identity, torch.eye(12, dtype=torch.float64).expand(3, 12, 12), rtol=0, atol=1e-8)


def test_spectrum_is_lifted_relative_to_its_largest() -> None:
    spectrum = torch.tensor([16.0, 1.0, 1e-9, -1e-9], dtype=torch.float64)
    # ε λ_max = 1e-4 · 16; the root of order 4 of 1/16 is 1/2
    floor = (16e-4) ** -0.25
    expected = torch.tensor([0.5, 1.0, floor, floor], dtype=torch.float64)
    torch.testing.assert_close(inverse_root_of_spectrum(spectrum, 4, 1e-4, 1.0), expected)


def test_each_member_has_its_own_lift_and_scale() -> None:
    factor = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)).repeat(2, 1, 1)
    result = torch.zeros_like(factor)
    update_inverse_roots(result, factor, 2, torch.tensor([1.0, 0.25]), torch.tensor([1.0, 0.25]))
    # member 0: diag(4, 4); member 1: diag(4, 1) / 4
    expected = torch.stack([torch.diag(torch.tensor([0.5, 0.5])), torch.diag(torch.tensor([1.0, 2.0]))]).double()
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("diagonal", [False, True])
def test_zero_matrix_has_root_zero(diagonal: bool) -> None:
    factors = torch.zeros((2, 5) if diagonal else (2, 5, 5), dtype=torch.float64)
    result = torch.ones_like(factors)
    assert not update_inverse_roots(result, factors, 4, epsilon=1e-6).any()
    assert torch.equal(result, torch.zeros_like(result))


def test_without_lift_the_root_is_a_pseudo_inverse() -> None:
    x = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    result = torch.zeros(1, 2, 2, dtype=torch.float64)
    # exact zeros in the null space: (25 e eᵀ)^(−1/2) = e eᵀ / 5 on the span of e = (1, 0) and 0 elsewhere
    factor = torch.tensor([[[25.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    update_inverse_roots(result, factor, 2)
    torch.testing.assert_close(result[0], torch.tensor([[0.2, 0.0], [0.0, 0.0]], dtype=torch.float64))
    update_inverse_roots(result, (x @ x.mT)[None], 2, epsilon=1e-12)
    torch.testing.assert_close(result[0] @ x, x / 5)


def test_diagonals_agree_with_diagonal_matrices() -> None:
    diagonals = positive(4, 6, 8, 3).diagonal(dim1=1, dim2=2).contiguous()
    epsilon, scale = torch.tensor([0.0, 0.1, 0.5, 1.0]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    thin, full = torch.zeros(4, 6).double(), torch.zeros(4, 6, 6).double()
    update_inverse_roots(thin, diagonals, 4, epsilon, scale)
    update_inverse_roots(full, torch.diag_embed(diagonals), 4, epsilon, scale)
    torch.testing.assert_close(torch.diag_embed(thin), full)


def test_only_the_lower_triangle_is_used() -> None:
    factors = positive(1, 7, 9, 4)
    noise = torch.randn(7, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    lopsided = factors + noise.triu(1)
    straight, skew = torch.zeros_like(factors), torch.zeros_like(factors)
    update_inverse_roots(straight, factors, 2)
    update_inverse_roots(skew, lopsided, 2)
    torch.testing.assert_close(skew, straight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_non_finite_member_keeps_its_root_and_does_not_affect_others(bad: float, diagonal: bool) -> None:
    factors = positive(3, 5, 8, 6)
    if diagonal:
        factors = factors.diagonal(dim1=1, dim2=2).contiguous()
    clean = torch.full_like(factors, 7.0)
    update_inverse_roots(clean, factors, 4)
    factors[1].view(-1)[2] = bad
    result = torch.full_like(factors, 7.0)
    kept = update_inverse_roots(result, factors, 4)
    assert kept.tolist() == [False, True, False]
    assert torch.equal(result[1], torch.full_like(result[1], 7.0))
    assert torch.equal(result[[0, 2]], clean[[0, 2]])


def test_a_root_that_overflows_its_dtype_is_not_used() -> None:
    factors = torch.stack([torch.eye(2), 1e-100 * torch.eye(2, dtype=torch.float64)])
    result = torch.full((2, 2, 2), 3.0)
    assert update_inverse_roots(result, factors, 2).tolist() == [False, True]
    assert torch.equal(result, torch.stack([torch.eye(2), torch.full((2, 2), 3.0)]))


@pytest.mark.parametrize("n", [1, 3, 10, 33, 100])
def test_member_alone_equals_member_among_others_bitwise(n: int) -> None:
    factors, epsilon = positive(7, n, n + 2, 8), torch.logspace(-9, -3, 7, dtype=torch.float64)
    together = torch.zeros(7, n, n)
    update_inverse_roots(together, factors, 4, epsilon)
    for i in range(7):
        alone = torch.zeros(1, n, n)
        update_inverse_roots(alone, factors[i : i + 1].clone(), 4, epsilon[i : i + 1])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("ndim", [2, 3])
def test_batched_route_agrees_with_one_by_one(ndim: int) -> None:
    factors = positive(4, 6, 9, 9)
    if ndim == 2:
        factors = factors.diagonal(dim1=1, dim2=2).contiguous()
    factors[2].view(-1)[0] = float("nan")
    epsilon, scale = torch.full((4,), 1e-3).double(), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    one, batched = torch.full_like(factors, 9.0), torch.full_like(factors, 9.0)
    expected = update_inverse_roots(one, factors, 4, epsilon, scale)
    kept = module._update_batched(batched, factors, 4, epsilon, scale, torch.float64)
    assert kept.tolist() == expected.tolist() == [False, False, True, False]
    torch.testing.assert_close(batched, one)


def test_batched_route_falls_back_to_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = positive(3, 4, 6, 10)
    expected = torch.zeros_like(factors)
    update_inverse_roots(expected, factors, 2)
    original, calls = torch.linalg.eigh, []

    def stubborn(matrix: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(matrix.shape)
        # the whole batch fails, and so does the member with index 1
        if matrix.ndim == 3 or torch.equal(matrix, factors[1]):
            raise torch.linalg.LinAlgError("did not converge")
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", stubborn)
    result = torch.full_like(factors, 5.0)
    one = torch.ones(3, dtype=torch.float64)
    kept = module._update_batched(result, factors, 2, 0 * one, one, torch.float64)
    assert kept.tolist() == [False, True, False]
    assert len(calls) == 4
    torch.testing.assert_close(result[[0, 2]], expected[[0, 2]])
    assert torch.equal(result[1], torch.full_like(result[1], 5.0))


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("diagonal", [False, True])
def test_products_agree_with_einsum(sides: int, diagonal: bool) -> None:
    moment = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    full = [positive(3, n, n, 12) for n in (4, 5)][:sides]
    if diagonal:
        full = [torch.diag_embed(x.diagonal(dim1=1, dim2=2)) for x in full]
    update = torch.einsum("Mij,Mjk->Mik", full[0], moment)
    if sides == 2:
        update = torch.einsum("Mij,Mjk->Mik", update, full[1])
    roots = [x.diagonal(dim1=1, dim2=2).clone() if diagonal else x for x in full]
    for precondition in (precondition_each, precondition_batched):
        torch.testing.assert_close(precondition(roots, moment), update)


def test_norms_are_taken_over_each_member() -> None:
    x = torch.tensor([[[3.0, 4.0]], [[5.0, 12.0]]])
    assert norms(x).tolist() == [5.0, 13.0]


def test_own_memory_is_contiguous_and_aligned_and_copies_only_if_necessary() -> None:
    x = torch.arange(40.0)
    assert own_memory(x) is x
    for view in (x[1:], x.view(8, 5).T, x[::2]):
        copy = own_memory(view)
        assert torch.equal(copy, view)
        assert copy.is_contiguous()
        assert copy.data_ptr() % module.ALIGNMENT == 0


@pytest.mark.first(4)
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    factors = positive(4, 40, 60, 13)
    factors[1, 0, 0] = float("nan")
    cpu, cuda = torch.zeros(4, 40, 40), torch.zeros(4, 40, 40, device="cuda")
    kept = update_inverse_roots(cpu, factors, 4, 1e-6)
    assert update_inverse_roots(cuda, factors.cuda(), 4, 1e-6).tolist() == kept.tolist()
    torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-5)
