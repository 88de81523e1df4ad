"""Factors of a Kronecker preconditioner for a stack of members: their accumulation, and when their roots are stale.

Shapes: M members; n the side of a factor; k the other side of the gradient.

A factor is L = kept · total + growth / unit². On a CPU, products X Xᵀ are added to the growth, and the growth is added
to the total when the root is refreshed. The growth serves two purposes:

- It measures how stale the root is.
- It can be in float32, which halves the time of a product. Only the products since the last refresh are then rounded to
  float32, not the complete sum.

On other devices, and where neither purpose applies, products are added to the total directly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optbench.optimizers.roots import one_by_one, own_memory, update_inverse_roots
from optbench.optimizers.symmetric import add_gram, times
from optbench.precision import widest

FAR = 2.0**30
"""The unit is changed when the largest gradient times the unit reaches this limit, whose square fits into float32."""
LONGEST = 500
"""Maximum number of steps for which a root is kept."""


@dataclass(frozen=True)
class Factor:
    """The factor of one side of one parameter: tensors in an optimizer's state, all with the leading axis M."""

    order: int
    """Order p of the root: twice the number of sides of the parameter."""
    total: Tensor
    """(M, n, n), stored as lower panels on a CPU; (M, n) if only the diagonal is kept; in the device's widest dtype."""
    root: Tensor
    """The root, with the shape of `total`, in the dtype of the gradient."""
    growth: Tensor | None = None
    """(M, n, n) as lower panels; None if products are added to the total directly."""
    kept: Tensor | None = None
    """(M,): the fraction of the total that remains after decay."""
    unit: Tensor | None = None
    """(M,): the power of two by which gradients are multiplied before accumulation, to prevent over- and underflow."""
    seen: Tensor | None = None
    """(M, n): an estimate of the direction of largest growth; None on a fixed schedule."""
    correction: Tensor | None = None
    """(M,): the bias correction with which the root was computed."""
    age: Tensor | None = None
    """(M,): steps since the root was computed."""

    @property
    def size(self) -> int:
        """The length n of the side."""
        return self.total.shape[1]

    @property
    def diagonal(self) -> bool:
        """True if only the diagonal is kept."""
        return self.total.ndim == 2


def begin(
    state: dict[str, Any],
    side: str,
    rows: Tensor,
    start: Tensor,
    *,
    diagonal: bool,
    single: Sequence[bool],
    by_need: bool,
) -> None:
    """Write the tensors of a new factor into `state`.

    Args:
        side: prefix of the tensors' names.
        rows: the first X, (M, n, k), which determines shape, device and dtype.
        start: (M,), the initial multiple of the identity.
        diagonal: whether to keep only the diagonal.
        single: for each member, whether its growth can be in float32.
        by_need: whether to also write the tensors that `outgrown` needs; on a CPU only.
    """
    members, size, device, dtype = len(rows), rows.shape[1], rows.device, widest(rows.device)
    shape = (members, size) if diagonal else (members, size, size)
    total = state[side] = torch.zeros(shape, dtype=dtype, device=device)
    (total if diagonal else total.diagonal(dim1=1, dim2=2)).add_(start.unsqueeze(1))
    state[f"{side}_root"] = torch.zeros(shape, dtype=rows.dtype, device=device)
    if diagonal:
        return
    if by_need or (one_by_one(rows) and any(single)):
        growing = dtype if by_need and not all(single) else torch.float32
        state[f"{side}_growth"] = torch.zeros(shape, dtype=growing, device=device)
        state[f"{side}_kept"] = torch.ones(members, dtype=dtype, device=device)
        state[f"{side}_unit"] = torch.zeros(members, dtype=dtype, device=device)
    if by_need:
        state[f"{side}_seen"] = torch.zeros(members, size, dtype=rows.dtype, device=device)
        state[f"{side}_correction"] = torch.ones(members, dtype=dtype, device=device)
        state[f"{side}_age"] = torch.zeros(members, dtype=torch.int64, device=device)


def planned(size: int, item: int, diagonal: bool, single: bool, by_need: bool) -> int:
    """Return the number of bytes that `begin` writes on a CPU for one member. item: bytes per gradient element."""
    if diagonal:
        return size * (8 + item)
    found = size * size * (8 + item)
    if by_need or single:
        found += size * size * (4 if single else 8) + 16
    return found + (size * item + 16 if by_need else 0)


def factor_of(state: dict[str, Any], side: str, order: int) -> Factor:
    """Return the factor written by `begin`."""
    rest = (state.get(f"{side}_{name}") for name in ("growth", "kept", "unit", "seen", "correction", "age"))
    return Factor(order, state[side], state[f"{side}_root"], *rest)


def accumulate(
    factor: Factor, rows: Tensor, decay: Tensor, weight: Tensor, single: Sequence[bool], largest: Sequence[float]
) -> None:
    """Update L ← decay L + weight X Xᵀ, in place.

    Args:
        rows: X, (M, n, k): a gradient, or its transpose for the other side.
        decay, weight: (M,), in the widest dtype.
        single: (M,), as in `begin`.
        largest: (M,), the largest absolute value in each member's X; used on a CPU only.
    """
    if factor.age is not None:
        factor.age.add_(1)
    if not one_by_one(rows):
        _accumulate_batched(factor, rows, decay, weight)
        return
    for i, (beta, alpha) in enumerate(zip(decay.tolist(), weight.tolist(), strict=True)):
        if factor.diagonal:
            factor.total[i].mul_(beta).add_(own_memory(rows[i]).to(factor.total.dtype).square().sum(1).mul_(alpha))
        elif factor.growth is not None and (factor.seen is not None or single[i]):
            _grow(factor, i, rows[i], beta, alpha, single[i], largest[i])
        else:
            target = own_memory(factor.total[i])
            add_gram(target, _aligned(rows[i], target.dtype), beta, alpha)
            _put_back(target, factor.total[i])


def _grow(factor: Factor, i: int, x: Tensor, decay: float, weight: float, single: bool, largest: float) -> None:
    """Decay the growth of member i, then add weight X Xᵀ to it."""
    assert factor.growth is not None
    assert factor.kept is not None
    assert factor.unit is not None
    factor.kept[i] *= decay
    growth, unit = factor.growth[i], float(factor.unit[i])
    if 0 < largest < math.inf and not 0 < largest * unit < FAR:
        before, unit = unit, 2.0 ** -math.frexp(largest)[1]
        growth.mul_((unit / before) ** 2 if before else 1.0)
    elif unit == 0 and largest != 0:  # not finite, which makes the total non-finite, too
        unit = 1.0
    factor.unit[i] = unit
    # A stack may hold members of both kinds; conversion to float64 and back does not change float32 numbers.
    dtype = torch.float32 if single else growth.dtype
    target = own_memory(growth.to(dtype))
    add_gram(target, _aligned(x.to(dtype) * (unit or 1.0), dtype), decay, weight)
    _put_back(target, growth)


def _put_back(found: Tensor, place: Tensor) -> None:
    if found.data_ptr() != place.data_ptr():
        place.copy_(found)


def _aligned(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix (n, k) in `dtype`, copied if necessary so that its memory layout does not depend on the stack."""
    straight = rows.stride(-1) == 1
    matrix = own_memory((rows if straight else rows.mT).to(dtype))
    return matrix if straight else matrix.mT


def _accumulate_batched(factor: Factor, rows: Tensor, decay: Tensor, weight: Tensor) -> None:
    total, rows = factor.total, rows.to(factor.total.dtype)
    if factor.diagonal:
        total.mul_(decay.view(-1, 1)).add_(rows.square().sum(2).mul_(weight.view(-1, 1)))
    else:
        total.mul_(decay.view(-1, 1, 1)).baddbmm_(rows * weight.view(-1, 1, 1), rows.mT)


def refresh(
    factor: Factor,
    members: Sequence[int],
    epsilon: Tensor,
    correction: Tensor,
    newton: float | None,
    precisions: Sequence[torch.dtype],
) -> Tensor:
    """Compute new roots of L / c for these members; return which members kept their previous root.

    Args:
        epsilon, correction: ε and c, (M,).
        newton, precisions: as `newton` and `precision` in `update_inverse_roots`.
    """
    _settle(factor, members)
    if factor.age is not None and factor.correction is not None:
        rows = torch.tensor(members, device=factor.age.device)
        factor.age[rows], factor.correction[rows] = 0, correction[rows]
    return update_inverse_roots(
        factor.root, factor.total, factor.order, epsilon, correction.reciprocal(), newton, precisions, members
    )


def _settle(factor: Factor, members: Sequence[int]) -> None:
    """Add the growth of these members to their totals."""
    if factor.growth is None or factor.kept is None or factor.unit is None:
        return
    kept, units = factor.kept.tolist(), factor.unit.tolist()
    for i in members:
        if kept[i] != 1:
            factor.total[i].mul_(kept[i])
        if units[i]:
            factor.total[i].add_(factor.growth[i], alpha=units[i] ** -2)
            factor.growth[i].zero_()
    factor.kept[list(members)], factor.unit[list(members)] = 1, 0


def moved(state: dict[str, Any], side: str) -> None:
    """Convert a factor from its form on a CPU to that on other devices: no growth, and both triangles of the total."""
    factor = factor_of(state, side, 0)
    if factor.diagonal:
        return
    _settle(factor, range(len(factor.total)))
    state[side] = factor.total.tril() + factor.total.tril(-1).mT
    for name in ("growth", "kept", "unit", "seen", "correction", "age"):
        state.pop(f"{side}_{name}", None)


def outgrown(factor: Factor, rows: Tensor, epsilon: Tensor, correction: Tensor, share: float) -> list[int]:
    """Return the members whose factor has changed by more than `share` since their root was computed.

    R is the current root. It was computed from L₀ / c₀, where L₀ and c₀ are the factor L and the bias correction c
    at that time. Apart from the damping, L / c lies between a L₀ / c₀ and (a + ρ) L₀ / c₀ in every direction. The
    factor counts as changed if a or a + ρ is far from 1:

        a = kept c₀ / c,   ρ = λ_max(R^(p/2) growth R^(p/2)) / c,   changed if a < 1 / (1 + share) or a + ρ > 1 + share.

    A step with the old root is therefore at most (1 + share)^(1/p) times too long per side. ρ is estimated by one step
    of a power iteration that starts from the previous result and the newest gradient, so that a new direction is
    detected immediately. With ε = 0, the root hides new directions and is therefore always treated as stale, as is a
    root that was computed `LONGEST` steps ago.

    Args:
        rows: the X that was accumulated last, (M, n, k).
        epsilon, correction: ε and c, (M,).
    """
    assert factor.growth is not None
    assert factor.kept is not None
    assert factor.seen is not None
    assert factor.correction is not None
    assert factor.age is not None
    assert factor.unit is not None
    low = (factor.kept * factor.correction / correction).tolist()
    weights, stretched = _weights(rows.shape[2]).to(factor.root.dtype), []
    for i, unit in enumerate(factor.unit.tolist()):
        root, growth = own_memory(factor.root[i]), own_memory(factor.growth[i].to(factor.root.dtype))
        probe = _aligned(rows[i] * unit, rows.dtype) @ weights
        ratio, factor.seen[i] = _stretched(root, growth, factor.order, unit or 1.0, own_memory(factor.seen[i]), probe)
        stretched.append(ratio)
    numbers = (low, stretched, epsilon.tolist(), correction.tolist(), factor.age.tolist())
    return [
        i
        for i, (a, s, e, c, age) in enumerate(zip(*numbers, strict=True))
        # NaN triggers a refresh, which then detects it
        if age >= LONGEST or e == 0 or not (a >= 1 / (1 + share) and a + s / c <= 1 + share)
    ]


def _stretched(
    root: Tensor, growth: Tensor, order: int, unit: float, seen: Tensor, probe: Tensor
) -> tuple[float, Tensor]:
    """Return a lower bound on λ_max(R^(p/2) growth R^(p/2)) / unit², and its direction, (n,).

    The bound is infinite if the factor was zero when its root was computed, because that root hides every direction.
    """

    def through(x: Tensor) -> Tensor:
        return (root @ x if order == 2 else root @ (root @ x)) / unit

    newest = through(probe)
    length = float(torch.linalg.vector_norm(newest))
    if length == 0 and probe.any():
        return math.inf, seen
    # The signs are aligned, so that the two do not cancel.
    towards = math.copysign(1 / length, float(seen @ newest)) if length else 0.0
    start = torch.add(seen, newest, alpha=towards)
    before = float(torch.linalg.vector_norm(start))
    image = through(times(growth, through(start)))
    after = float(torch.linalg.vector_norm(image))
    return after / (before or 1.0), image / (after or 1.0)


def single_fits(size: int, epsilon: Sequence[float]) -> list[bool]:
    """Return, for each ε, whether float32 is sufficient for a factor with side `size`.

    Rounding moves eigenvalues by up to about n 2⁻²³ λ_max, and eigenvalues below ε λ_max do not matter. With ε = 1e-4,
    the error of an update is 2e-4 for 784 pixels and 2e-6 for 100 units (benchmarks/RESULTS.md).
    """
    return [value >= size * torch.finfo(torch.float32).eps for value in epsilon]


@functools.cache
def _weights(k: int) -> Tensor:
    """Return k fixed, normally distributed weights that combine the columns of a gradient into one direction."""
    return torch.randn(k, generator=torch.Generator().manual_seed(k))
