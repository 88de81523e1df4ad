"""Computation and application of inverse p-th roots of a Kronecker preconditioner's factors, for a stack of members.

Shapes: M members; m rows and n columns of a parameter; n is also the side of a factor.

On a CPU, every member's matrices are processed by separate calls on separate memory, so that a member's result cannot
depend on the number of members or on its position in the stack. On a GPU, one batched call processes the stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from optbench.optimizers.newton_root import iterations_for, newton_inverse_root
from optbench.optimizers.symmetric import whole
from optbench.precision import widest

ALIGNMENT = 64
"""Alignment of PyTorch's allocations, in bytes; BLAS kernels may round differently for unaligned memory."""


def one_by_one(x: Tensor) -> bool:
    """Return whether the members of `x` are processed by separate calls: True on a CPU."""
    return x.device.type == "cpu"


def own_memory(x: Tensor) -> Tensor:
    """Return `x` itself if it is contiguous and aligned, otherwise a contiguous and aligned copy.

    A slice of a stack can start at any address, whereas a separate tensor starts at an aligned one. Products use
    tensors from this function, so that BLAS receives the same layout for a member alone and in a stack.
    """
    if x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def inverse_root_of_spectrum(
    spectrum: Tensor, order: int, epsilon: Tensor | float, scale: Tensor | float, *, added: bool = False
) -> Tensor:
    """Return (scale · max(λ, ε λ_max))^(−1/order), or 0 where the base of the power is not positive.

    Args:
        spectrum: eigenvalues, shape (..., n), in any order.
        order: p of the p-th root, at least 1.
        epsilon: eigenvalues are raised to at least this fraction of the largest; a number or shape (...).
        scale: positive factor on the matrix; a number or shape (...).
        added: whether to use λ + ε λ_max instead of max(λ, ε λ_max).
    """
    epsilon, scale = (torch.as_tensor(x, dtype=spectrum.dtype, device=spectrum.device) for x in (epsilon, scale))
    floor = epsilon.unsqueeze(-1) * spectrum.amax(-1, keepdim=True)
    base = (spectrum + floor if added else torch.maximum(spectrum, floor)) * scale.unsqueeze(-1)
    # written so that NaN stays NaN, which the caller detects
    return torch.where(base <= 0, torch.zeros_like(base), base.pow(-1.0 / order))


def update_inverse_roots(
    roots: Tensor,
    factors: Tensor,
    order: int,
    epsilon: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    newton: float | None = None,
    precision: torch.dtype | Sequence[torch.dtype] = torch.float64,
    members: Sequence[int] | None = None,
) -> Tensor:
    """Set `roots[i]` to (scale_i · factors[i])^(−1/order), in place, if this root can be computed.

    The eigenvalues of each factor are first raised to at least `epsilon_i` times the largest. Eigenvalues that are
    still not positive contribute 0, so the root of a zero matrix is zero. On a CPU, only the lower triangle of a factor
    is read; on other devices, its symmetric part. The factor is decomposed in `precision`, and the root is assembled in
    the dtype of `roots`.

    A member keeps its previous root if its factor is not finite, `eigh` does not converge, or the new root overflows
    the dtype. Other members are not affected.

    Args:
        roots: shape (M, n, n), or (M, n) for diagonal matrices; floating, overwritten.
        factors: the same shape as `roots`; positive semidefinite up to rounding.
        order: p of the p-th root, at least 1.
        epsilon: fraction of the largest eigenvalue, at least 0; a number or shape (M,).
        scale: positive factor on the matrices; a number or shape (M,).
        newton: None to decompose the factors. Otherwise, the smallest `epsilon` of all members, above 0; roots are then
            computed by `newton_inverse_root`. In this case, `epsilon` times the largest eigenvalue is added to all
            eigenvalues, and a root that has not converged is rejected. The number of iterations depends on each
            member's epsilon on a CPU, and on the smallest epsilon on other devices.
        precision: dtype of the decomposition, or of Newton's products if the device supports it; on a CPU, it can
            differ between members. A decomposition in float32 that does not converge is repeated in float64.
        members: indices of the members whose roots are set; None for all.

    Returns:
        shape (M,), bool, on the device of `roots`: True for the selected members that kept their previous root.
    """
    assert roots.shape == factors.shape, (roots.shape, factors.shape)
    assert order >= 1, order
    count = factors.shape[0]
    epsilon, scale = (
        torch.as_tensor(x, dtype=factors.dtype, device=factors.device).expand(count) for x in (epsilon, scale)
    )
    chosen = range(count) if members is None else members
    precisions = [precision] * count if isinstance(precision, torch.dtype) else precision
    if one_by_one(factors) or (newton is None and factors.dtype != torch.float64):
        return _update_each(roots, factors, order, epsilon, scale, newton is not None, precisions, chosen)
    if len(chosen) < count:
        rows = torch.tensor(chosen, dtype=torch.int64, device=roots.device)
        found, kept = roots[rows], torch.zeros(count, dtype=torch.bool, device=roots.device)
        if len(chosen):
            kept[rows] = _update_together(
                found, factors[rows], order, epsilon[rows], scale[rows], newton, precisions[0]
            )
            roots[rows] = found
        return kept
    return _update_together(roots, factors, order, epsilon, scale, newton, precisions[0])


def _update_together(
    roots: Tensor,
    factors: Tensor,
    order: int,
    epsilon: Tensor,
    scale: Tensor,
    newton: float | None,
    precision: torch.dtype,
) -> Tensor:
    """Compute `update_inverse_roots` with one call for all members."""
    if newton is None:
        return _update_batched(roots, factors, order, epsilon, scale, precision)
    return _update_by_newton(roots, factors, order, epsilon, scale, iterations_for(order, newton), precision)


def _update_each(
    roots: Tensor,
    factors: Tensor,
    order: int,
    epsilon: Tensor,
    scale: Tensor,
    newton: bool,
    precisions: Sequence[torch.dtype],
    members: Sequence[int],
) -> Tensor:
    """Compute `update_inverse_roots` one member at a time; epsilon and scale have shape (M,).

    Decompositions run on the CPU, whatever device the tensors are on.
    """
    kept = torch.zeros(len(roots), dtype=torch.bool)
    numbers = list(zip(epsilon.tolist(), scale.tolist(), strict=True))
    for i in members:
        eps, by = numbers[i]
        if newton:
            own, steps = slice(i, i + 1), iterations_for(order, eps)
            factor = factors[own] if factors.ndim == 2 else whole(factors[i]).unsqueeze(0)
            kept[own] = _update_by_newton(roots[own], factor, order, epsilon[own], scale[own], steps, precisions[i])
            continue
        factor = factors[i].to("cpu", torch.float64)
        new = _inverse_root(factor, order, eps, by, roots.dtype, precisions[i])
        if new is None:
            kept[i] = True
        else:
            roots[i] = new
    return kept.to(roots.device)


def _inverse_root(
    factor: Tensor, order: int, epsilon: float, scale: float, dtype: torch.dtype, precision: torch.dtype
) -> Tensor | None:
    """Return the inverse root of one float64 factor, (n, n) or (n,); None if it cannot be computed."""
    if not _finite(factor):
        return None
    if factor.ndim == 1:
        root = inverse_root_of_spectrum(factor, order, epsilon, scale).to(dtype)
        return root if _finite(root) else None
    for attempt in dict.fromkeys((precision, torch.float64)):
        # scaled to unit size, to prevent float32 over- and underflow
        size = 1.0 if attempt == torch.float64 else float(factor.trace()) or 1.0
        try:
            spectrum, basis = torch.linalg.eigh((factor / size).to(attempt))
        except LinAlgError:
            continue
        spectrum = spectrum.double() * size
        root = _assemble(basis, inverse_root_of_spectrum(spectrum, order, epsilon, scale), dtype)
        if _finite(root):
            return root
    return None


def _finite(x: Tensor) -> bool:
    """Return whether all elements are finite, determined in a single pass from their sum in float64."""
    return math.isfinite(float(x.sum(dtype=torch.float64)))


def _update_by_newton(
    roots: Tensor,
    factors: Tensor,
    order: int,
    epsilon: Tensor,
    scale: Tensor,
    iterations: int,
    precision: torch.dtype,
) -> Tensor:
    """Compute `update_inverse_roots` by matrix products only, for all members at the same time."""
    if factors.ndim == 2:
        new, good = inverse_root_of_spectrum(factors, order, epsilon, scale, added=True), factors.isfinite().all(1)
    else:
        dtype = widest(factors.device) if precision == torch.float64 else precision
        new, good = newton_inverse_root(_symmetrised(factors).to(dtype), order, epsilon, iterations)
        new = new * scale.pow(-1.0 / order).view(-1, 1, 1)
    return _take(new.to(roots.dtype), good, roots)


def _take(new: Tensor, good: Tensor, roots: Tensor) -> Tensor:
    """Copy finite roots from `new` for the `good` members; return which members kept their previous root, (M,)."""
    good = good & new.flatten(1).isfinite().all(1)
    roots.copy_(torch.where(good.view(-1, *[1] * (new.ndim - 1)), new, roots))
    return ~good


def _update_batched(
    roots: Tensor, factors: Tensor, order: int, epsilon: Tensor, scale: Tensor, precision: torch.dtype
) -> Tensor:
    """Compute `update_inverse_roots` with one call for all members; epsilon and scale have shape (M,)."""
    finite = factors.flatten(1).isfinite().all(1)
    column = (-1,) + (1,) * (factors.ndim - 1)
    if factors.ndim == 2:
        new = inverse_root_of_spectrum(factors.double(), order, epsilon, scale).to(roots.dtype)
    else:
        # A batched eigh raises if any matrix is not finite, so non-finite ones are replaced by the identity.
        identity = torch.eye(factors.shape[-1], dtype=torch.float64, device=factors.device)
        matrices = torch.where(finite.view(column), _symmetrised(factors.double()), identity)
        try:
            spectrum, basis = torch.linalg.eigh(matrices.to(precision))
        except LinAlgError:
            # This uses another routine, which often converges where the batched one does not.
            members = range(len(roots))
            return _update_each(roots, factors, order, epsilon, scale, False, [torch.float64] * len(roots), members)
        new = _assemble(basis, inverse_root_of_spectrum(spectrum, order, epsilon, scale), roots.dtype)
    return _take(new, finite, roots)


def _symmetrised(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT).mul_(0.5)


def _assemble(basis: Tensor, spectrum: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Q diag(s) Qᵀ in `dtype`; basis (..., n, n), spectrum (..., n)."""
    basis = basis.to(dtype)
    return (basis * spectrum.to(dtype).unsqueeze(-2)) @ basis.mT


def precondition(roots: list[Tensor], moment: Tensor) -> Tensor:
    """Return A X for roots [A] and A X B for roots [A, B], where X is `moment`.

    Args:
        roots: A of shape (M, m, m), or (M, m) for a diagonal; B with n instead of m.
        moment: shape (M, m, n), not modified.

    Returns:
        shape (M, m, n), newly allocated.
    """
    return (precondition_each if one_by_one(moment) else precondition_batched)(roots, moment)


def precondition_each(roots: list[Tensor], moment: Tensor) -> Tensor:
    """Compute `precondition` one member at a time."""
    update = torch.empty_like(moment, memory_format=torch.contiguous_format)
    for i in range(moment.shape[0]):
        x = own_memory(moment[i])
        left = own_memory(roots[0][i])
        x = left.unsqueeze(1) * x if left.ndim == 1 else left @ x
        if len(roots) == 2:
            right = own_memory(roots[1][i])
            x = x * right if right.ndim == 1 else x @ right
        update[i] = x
    return update


def precondition_batched(roots: list[Tensor], moment: Tensor) -> Tensor:
    """Compute `precondition` with one call for all members."""
    update = roots[0].unsqueeze(2) * moment if roots[0].ndim == 2 else roots[0] @ moment
    if len(roots) == 2:
        update = update * roots[1].unsqueeze(1) if roots[1].ndim == 2 else update @ roots[1]
    return update


def norms(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each member's slice, shape (M,)."""
    if one_by_one(x):
        lengths: Tensor = torch.stack([torch.linalg.vector_norm(own_memory(member)) for member in x])
    else:
        lengths = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths
