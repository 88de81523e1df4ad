"""Loss landscape: the distance of a solution from its initial weights, its sharpness, and barriers between solutions.

Legend: `P` weights of one network in one vector; `K` points on a line; `...` any leading axes (members).

Everything is computed in float64. Functions of weights or values take any leading axes and return (...). Functions of
the loss are for one network: they take a `Loss`, a differentiable function of the weights (P,), and return a record of
plain numbers. A value that is undefined or not finite is NaN. The reason is given by the record's `note` or, for
distances and barriers, by `displacement_note` and `barrier_note`. Sharpness and distance mean little without the
training loss at the solution (`landscape_loss`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from optbench.counting import count

Loss: TypeAlias = Callable[[Tensor], Tensor]
"""Weights (P,) float64 -> scalar; deterministic, and twice differentiable where the Hessian is used."""

BARRIER_POINTS = 11
"""The minimum number of points on a line, including both ends."""

_LINEAR = "the gradient is zero"


@dataclass(frozen=True)
class NotedValue:
    """A number, and a note that gives the reason if the number is NaN and is None otherwise."""

    value: float
    note: str | None


@dataclass(frozen=True)
class TopEigenvalue:
    """The algebraically largest eigenvalue λ of a Hessian, e.g. 3 for diag(3, 1, -5).

    residual: ‖Hv - λv‖ / |λ| for the computed unit eigenvector v; NaN if λ = 0. Some eigenvalue of the Hessian is
        within residual · |λ| of λ.
    iterations: number of Lanczos steps.
    note: why λ or the residual is NaN, or that the residual exceeds the tolerance; None otherwise.
    """

    value: float
    residual: float
    iterations: int
    note: str | None


@dataclass(frozen=True)
class Trace:
    """The estimated trace of a Hessian, with its standard error; `note` gives the reason if the trace is NaN."""

    value: float
    error: float
    probes: int
    note: str | None


def interpolate(first: Tensor, last: Tensor, alphas: Tensor) -> Tensor:
    """Return (1 - α) w₀ + α w₁ at every α: two weight vectors (..., P) and alphas (K,) -> (..., K, P).

    The results for α = 0 and 1 are exactly w₀ and w₁. If w₀ = w₁, all results equal them exactly.
    """
    w0, w1 = (w.detach().double().unsqueeze(-2) for w in (first, last))
    return torch.lerp(w0, w1, alphas.to(w0)[:, None])


def barrier(losses: Tensor) -> Tensor:
    """Return max_α [L((1-α) w₀ + α w₁) - (1-α) L(w₀) - α L(w₁)], the rise of the loss above linear interpolation.

    losses: (..., K) at K evenly spaced α from 0 to 1 -> (...), at least 0. NaN if a value is not finite. The barrier is
    that of Frankle et al. 2020, arXiv:1912.05671, but as in Entezari et al. 2022, arXiv:2110.06296, it is relative to
    the linear interpolation of the losses at the ends rather than to their mean.

    Raises:
        ValueError: there are fewer than 11 points.

    Example:
        >>> w = torch.linspace(-1, 1, 11)
        >>> round(barrier((w.square() - 1).square()).item(), 3)  # between the minima of (w² - 1)²
        1.0
    """
    values = losses.detach().double()
    if values.ndim < 1 or values.shape[-1] < BARRIER_POINTS:
        raise ValueError(f"expected losses of shape (..., K) with K ≥ {BARRIER_POINTS}, got {tuple(values.shape)}")
    alphas = torch.linspace(0.0, 1.0, values.shape[-1], dtype=values.dtype, device=values.device)
    rise = values - torch.lerp(values[..., :1], values[..., -1:], alphas)
    return torch.where(values.isfinite().all(-1), rise.amax(-1), torch.nan)


def accuracy_barrier(accuracies: Tensor) -> Tensor:
    """Return the largest drop of the accuracy below linear interpolation, the counterpart of `barrier`.

    accuracies: (..., K) at K evenly spaced α from 0 to 1 -> (...), at least 0. Raises ValueError as `barrier` does.
    """
    return barrier(-accuracies)


def barrier_note(values: Tensor) -> str | None:
    """Return why a barrier over the values (K,) on one line is NaN; None if the barrier is defined."""
    assert values.ndim == 1, "expected the values on one line"
    missing = int((~values.isfinite()).sum())
    return f"not finite at {missing} of {count(len(values), 'point')}" if missing else None


def distance_from_init(weights: Tensor, start: Tensor) -> Tensor:
    """Return the distance ‖w - w₀‖₂ from the initial weights; NaN if it is not finite or P = 0.

    weights, start: w and w₀, (..., P) -> (...).
    """
    distance: Tensor = torch.linalg.vector_norm(_displacement(weights, start), dim=-1)
    return torch.where(distance.isfinite() & (weights.shape[-1] > 0), distance, torch.nan)


def relative_distance_from_init(weights: Tensor, start: Tensor) -> Tensor:
    """Return ‖w - w₀‖₂ / ‖w₀‖₂; NaN as in `distance_from_init`, or if the initial weights are all zero.

    weights, start: w and w₀, (..., P) -> (...).
    """
    size: Tensor = torch.linalg.vector_norm(start.detach().double(), dim=-1)
    relative = distance_from_init(weights, start) / size
    return torch.where(relative.isfinite(), relative, torch.nan)


def displacement_note(weights: Tensor, start: Tensor) -> str | None:
    """Return why some distance from the initial weights (P,) is NaN, else None."""
    assert weights.ndim == start.ndim == 1, "expected the weights of one network"
    if weights.numel() == 0:
        return "no weights"
    if not weights.isfinite().all():
        return "the weights are not finite"
    if not start.isfinite().all():
        return "the initial weights are not finite"
    if not start.any():
        return "all initial weights are zero"
    if not relative_distance_from_init(weights, start).isfinite():
        return "the distance overflows"
    return None


def displacement_angle(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the angle in degrees, 0 to 180, between the displacements a - w₀ and b - w₀ from a common start.

    start, first, second: w₀, a and b, (..., P) -> (...); NaN if a solution has not moved or is not finite. Kahan's
    formula is used because it preserves small angles, which the arc cosine loses.
    """
    one, other = (_unit(_displacement(w, start)) for w in (first, second))
    apart: Tensor = torch.linalg.vector_norm(one - other, dim=-1)
    along: Tensor = torch.linalg.vector_norm(one + other, dim=-1)
    return torch.rad2deg(2.0 * torch.atan2(apart, along))


def landscape_loss(loss: Loss, weights: Tensor) -> NotedValue:
    """Return L(w), recorded with every metric of the loss landscape around w."""
    with torch.no_grad():
        value = loss(weights.detach().double()).item()
    return NotedValue(value, None) if math.isfinite(value) else NotedValue(math.nan, "the loss is not finite")


def sam_sharpness(loss: Loss, weights: Tensor, rho: Annotated[float, Field(gt=0)] = 0.05) -> NotedValue:
    """Return L(w + ρ g/‖g‖) - L(w) with g the gradient (Foret et al. 2021, arXiv:2010.01412).

    weights: (P,). NaN if the gradient is zero. Raises ValueError unless rho is positive and finite.
    """
    return _sharpness(loss, weights, torch.ones_like(weights), rho, _LINEAR)


def adaptive_sam_sharpness(loss: Loss, weights: Tensor, rho: Annotated[float, Field(gt=0)] = 0.5) -> NotedValue:
    """Return L(w + ρ w² g / ‖|w| g‖) - L(w), with elementwise products: the radius is relative to each weight.

    Source: Kwon et al. 2021, arXiv:2102.11600. The sharpness is invariant to any rescaling of weights that leaves the
    network's function unchanged.

    weights: (P,). NaN if |w| g is zero. Raises ValueError unless rho is positive and finite.
    """
    reason = _LINEAR if weights.any() else "all weights are zero"
    return _sharpness(loss, weights, weights.detach().abs(), rho, reason)


def hessian_top_eigenvalue(
    loss: Loss,
    weights: Tensor,
    generator: torch.Generator,
    *,
    tolerance: Annotated[float, Field(gt=0)] = 1e-4,
    iterations: Annotated[int, Field(ge=1)] = 100,
) -> TopEigenvalue:
    """Compute the algebraically largest eigenvalue of the Hessian at weights (P,) by Lanczos' method.

    The method uses full reorthogonalisation (Parlett 1998, The Symmetric Eigenvalue Problem, chapter 13) and starts
    from a normally distributed vector, drawn with the CPU `generator`. It stops when the residual ‖Hv - λv‖ / |λ| is at
    most `tolerance`, or after `iterations` steps, each of which stores a vector (P,). The error of λ is of the order of
    the squared residual.

    Raises:
        ValueError: tolerance is not above 0, or iterations is below 1.
    """
    if not (tolerance > 0 and iterations >= 1):
        raise ValueError(f"Lanczos: expected tolerance > 0 and iterations ≥ 1, got {tolerance} and {iterations}")
    hessian = _Hessian(loss, weights)
    if hessian.note:
        return TopEigenvalue(math.nan, math.nan, 0, hessian.note)
    size = weights.numel()
    most = min(iterations, size)
    basis = hessian.point.new_empty(most, size)
    tridiagonal = torch.zeros(most, most, dtype=torch.float64)  # on the CPU, which is faster for a matrix of this size
    vector = torch.randn(size, generator=generator, dtype=torch.float64).to(basis)
    coupling = torch.linalg.vector_norm(vector).item()
    for k in range(most):
        basis[k] = vector / coupling
        vector = hessian(basis[k])
        if not vector.isfinite().all():
            return TopEigenvalue(math.nan, math.nan, k + 1, "the Hessian is not finite")
        tridiagonal[k, k] = torch.dot(basis[k], vector).item()
        for _ in range(2):  # a single pass leaves rounding errors that grow; "twice is enough" (Kahan, in Parlett 6.9)
            vector = vector - basis[: k + 1].T @ (basis[: k + 1] @ vector)
        coupling = torch.linalg.vector_norm(vector).item()
        values, vectors = torch.linalg.eigh(tridiagonal[: k + 1, : k + 1])
        top, weight = values[-1].item(), vectors[-1, -1].abs().item()
        # Only rounding errors remain: the basis spans the whole Krylov space of the start, and λ is among its values.
        exhausted = coupling <= torch.finfo(torch.float64).eps * values.abs().max().item()
        if exhausted or coupling * weight <= tolerance * abs(top):
            break
        if k + 1 < most:
            tridiagonal[k, k + 1] = tridiagonal[k + 1, k] = coupling
    # The recurrence gives the residual up to rounding; one more product verifies it.
    vector = _unit(vectors[:, -1].to(basis) @ basis[: k + 1])
    product = hessian(vector)
    value = torch.dot(vector, product).item()
    gap = torch.linalg.vector_norm(product - value * vector).item()
    residual = gap / abs(value) if value else math.nan
    note = None
    if value == 0:
        note = "the eigenvalue is zero"
    elif residual > tolerance:
        note = f"residual {residual:.1g} after {k + 1} iterations"
    return TopEigenvalue(value, residual, k + 1, note)


def hessian_trace(
    loss: Loss, weights: Tensor, generator: torch.Generator, probes: Annotated[int, Field(ge=2)] = 32
) -> Trace:
    """Estimate the trace of the Hessian at weights (P,): mean of vᵀHv over random sign probes v (Hutchinson 1990).

    The signs are drawn with the CPU `generator`. Among probes with independent entries, random signs have the smallest
    variance, 2 Σ_{i≠j} H_ij² per probe, so the trace of a diagonal Hessian is exact.

    Raises:
        ValueError: `probes` is below 2, so that no standard error can be computed.
    """
    if probes < 2:
        raise ValueError(f"expected at least 2 probes for a standard error, got {probes}")
    hessian = _Hessian(loss, weights)
    if hessian.note:
        return Trace(math.nan, math.nan, probes, hessian.note)
    samples = torch.empty(probes, dtype=torch.float64)
    for k in range(probes):
        signs = torch.randint(0, 2, (weights.numel(),), generator=generator).to(hessian.point) * 2.0 - 1.0
        samples[k] = torch.dot(signs, hessian(signs)).item()
    if not samples.isfinite().all():
        return Trace(math.nan, math.nan, probes, "the Hessian is not finite")
    return Trace(samples.mean().item(), samples.std().item() / math.sqrt(probes), probes, None)


class _Hessian:
    """Hessian-vector products Hv at fixed weights.

    The graph of the gradient is built once and differentiated again for each v. On the networks of this package, a
    product takes about as long as a gradient. Rebuilding the graph would take twice as long, and forward-over-reverse
    differentiation four times as long.
    """

    def __init__(self, loss: Loss, weights: Tensor) -> None:
        self.point, value, self._gradient = _gradient(loss, weights, create_graph=True)
        self.note = _unfit(self.point, value, self._gradient)

    def __call__(self, vector: Tensor) -> Tensor:
        if not self._gradient.requires_grad:  # a loss that is linear in the weights
            return torch.zeros_like(vector)
        (product,) = torch.autograd.grad(self._gradient, self.point, vector, retain_graph=True, materialize_grads=True)
        return product


def _gradient(loss: Loss, weights: Tensor, *, create_graph: bool = False) -> tuple[Tensor, float, Tensor]:
    """Return the detached weights (P,) in float64, and the loss and its gradient (P,) at these weights."""
    if weights.ndim != 1:
        raise ValueError(f"expected weights of shape (P,), got {tuple(weights.shape)}")
    with torch.enable_grad():
        point = weights.detach().double().requires_grad_(True)
        value = loss(point)
        if not value.requires_grad:  # a constant
            return point, value.item(), torch.zeros_like(point)
        (gradient,) = torch.autograd.grad(value, point, create_graph=create_graph, materialize_grads=True)
    return point, value.item(), gradient


def _unfit(point: Tensor, value: float, gradient: Tensor) -> str | None:
    if point.numel() == 0:
        return "no weights"
    if not point.isfinite().all():
        return "the weights are not finite"
    if not math.isfinite(value):
        return "the loss is not finite"
    if not gradient.isfinite().all():
        return "the gradient is not finite"
    return None


def _sharpness(loss: Loss, weights: Tensor, scale: Tensor, rho: float, without_direction: str) -> NotedValue:
    """Return L(w + ρ s u) - L(w), the rise of the loss due to SAM's perturbation.

    s is `scale`, g is the gradient of L at w, and u = s g / ‖s g‖.
    """
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"expected rho to be positive and finite, got {rho}")
    point, value, gradient = _gradient(loss, weights)
    note = _unfit(point, value, gradient)
    if note:
        return NotedValue(math.nan, note)
    scale = scale.double()
    direction = _unit(scale * gradient)
    if direction.isnan().any():
        return NotedValue(math.nan, without_direction)
    with torch.no_grad():
        risen = loss(point.detach() + rho * scale * direction).item()
    if not math.isfinite(risen):
        return NotedValue(math.nan, "the loss at the perturbed weights is not finite")
    return NotedValue(risen - value, None)


def _displacement(weights: Tensor, start: Tensor) -> Tensor:
    if weights.ndim < 1:
        raise ValueError("expected weights of shape (..., P), got a scalar")
    return weights.detach().double() - start.detach().double()


def _unit(vectors: Tensor) -> Tensor:
    """Normalise vectors (..., P), scaling by the largest entry first to avoid under- and overflow; NaN if undefined."""
    if vectors.shape[-1] == 0:
        return vectors
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    relative = torch.where(largest.isfinite() & (largest > 0), vectors / largest, torch.nan)
    unit: Tensor = relative / torch.linalg.vector_norm(relative, dim=-1, keepdim=True)
    return unit
