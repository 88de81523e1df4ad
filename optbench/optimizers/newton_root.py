"""Inverse p-th roots by matrix products, for accelerators, on which products are fast and decompositions slow.

Shapes: M members; n the side of a matrix.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

SQUARINGS = 8
"""Number of squarings in `largest_eigenvalue`, whose result is at most n^(1/256) times λ_max.

With n = 784 equal eigenvalues, the result is 2.6% too large.
"""
CONVERGED = 1e-3
"""A root X is accepted if all entries of X^p A − I are below this in magnitude; in float64, they are far smaller."""
MOST = 200


def newton_inverse_root(matrices: Tensor, order: int, epsilon: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Compute (A + ε λ_max I)^(−1/p) of every matrix by a coupled Newton iteration.

    With B = A / λ_max + ε I, the iteration of Guo & Higham 2006 and Iannazzo 2006 is

        X ← X T,   R ← T^p R,   T = ((p + 1) I − R) / p,   starting from R = z B, X = z^(1/p) I

    with a z > 0 for which R converges to the identity, and X to B^(−1/p). The root is λ_max^(−1/p) X. No control flow
    depends on data, so the device is not synchronised.

    Args:
        matrices: A, shape (M, n, n), symmetric positive semidefinite; in float64 if ε is small.
        order: p, at least 1.
        epsilon: ε > 0, shape (M,): the fraction of the largest eigenvalue that is added to every eigenvalue. The
            largest eigenvalue is overestimated by up to a few percent (see `SQUARINGS`).
        iterations: the number of iterations; see `iterations_for`.

    Returns:
        roots, shape (M, n, n), zero for a zero matrix; and whether each has converged, shape (M,).
    """
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    size = largest_eigenvalue(matrices)
    seen = size != 0
    size = torch.where(seen, size, torch.ones_like(size))
    a = matrices / _column(size) + _column(epsilon.to(matrices.dtype)) * identity
    # Eigenvalues of `a` are in [ε, 1 + ε], so those of z a are in (0, p + 1), where the iteration converges.
    z = (order + 1) / (2 * (1 + epsilon.to(matrices.dtype)))
    rest = a * _column(z)
    root = _column(z.pow(1 / order)) * identity
    for _ in range(iterations):
        step = ((order + 1) * identity - rest) / order
        root = root @ step
        rest = _power(step, order) @ rest
    converged = (rest - identity).flatten(1).abs().amax(1) < CONVERGED  # False for NaN
    root = root * _column(size.pow(-1 / order))
    return torch.where(_column(seen), root, torch.zeros_like(root)), converged | ~seen


def largest_eigenvalue(matrices: Tensor) -> Tensor:
    """Return (tr A^q)^(1/q) with q = 2^`SQUARINGS`, (M,): an upper bound on λ_max of semidefinite A; 0 if A is 0."""
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)
    power = matrices / _column(torch.where(trace == 0, torch.ones_like(trace), trace))
    log = trace.log()
    for k in range(1, SQUARINGS + 1):
        power = power @ power
        part = power.diagonal(dim1=1, dim2=2).sum(1)
        power = power / _column(part)
        log = log + part.log() * 0.5**k
    return torch.where(trace == 0, torch.zeros_like(trace), log.exp())


@functools.cache
def iterations_for(order: int, epsilon: float) -> int:
    """Return the number of iterations that eigenvalues between ε and 1 + ε need to converge.

    Raises:
        ValueError: more than `MOST` iterations would be needed.
    """
    half = (order + 1) / 2
    rest = [half * epsilon / (1 + epsilon), half]
    for count in range(MOST):
        if all(abs(r - 1) < 1e-8 for r in rest):  # the next iteration squares these errors
            return count + 1
        rest = [r * ((order + 1 - r) / order) ** order for r in rest]
    raise ValueError(f"epsilon: expected a value that needs at most {MOST} iterations, got {epsilon:g}; increase it")


def _power(matrix: Tensor, exponent: int) -> Tensor:
    """Raise matrices to a power by repeated squaring; the fourth power takes two products."""
    found = matrix
    for bit in bin(exponent)[3:]:
        found = found @ found
        if bit == "1":
            found = found @ matrix
    return found


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
