"""The geometry of an update: its stable rank, and its angles to the gradient G, to sign(G) and to G's polar factor.

Everything is computed in float64 for a weight matrix W (m, n) with gradient G and step Δ. Tensors with more than two
axes are treated as matrices (m, all other axes). All values are NaN if W, G or Δ is not finite. Otherwise, a value is
NaN if it is undefined because a matrix is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from optbench.precision import exact

POINTS = 16
"""Number of updates that are measured during training."""
NEGLIGIBLE = 1e-7
"""Singular values of the gradient below this fraction of the largest are left out of its polar factor."""


@dataclass(frozen=True)
class Geometry:
    """The geometry of one step of one weight matrix."""

    stable_rank: float
    """‖Δ‖²_F / ‖Δ‖²₂."""
    cosine_gradient: float
    """Cosine between Δ and -G."""
    cosine_sign: float
    """Cosine between Δ and -sign(G)."""
    cosine_polar: float
    """Cosine between Δ and -UVᵀ, where UVᵀ is the polar factor of G = U S Vᵀ."""
    relative_size: float
    """‖Δ‖_F / ‖W‖_F."""
    angle: float
    """Angle between W and W + Δ, in degrees."""


NAMES = tuple(field.name for field in fields(Geometry))


def mean(points: Sequence[Geometry], *, of: str) -> float:
    """Return the mean of one field over the measured updates for which it is defined; NaN if there are none."""
    values = [value for point in points if math.isfinite(value := getattr(point, of))]
    return math.fsum(values) / len(values) if values else math.nan


def note(points: Sequence[Geometry], *, of: str) -> str | None:
    """Return why a mean is undefined or covers fewer than `POINTS` updates; None if it covers all of them."""
    defined = sum(math.isfinite(getattr(point, of)) for point in points)
    if not defined:
        return "undefined for every measured update"
    return (
        None
        if defined == POINTS
        else f"mean of {defined} updates, not {POINTS}: training was short or stopped early, or an update is undefined"
    )


def geometry(weight: Tensor, gradient: Tensor, step: Tensor) -> Geometry:
    """Return the geometry of one step. weight: W before the step.

    All tensors must have the same shape, with two or more axes.

    Raises:
        ValueError: the shapes disagree or have fewer than two axes.

    Example:
        >>> gradient = torch.tensor([[2.0, 1], [0, 1]])
        >>> found = geometry(torch.eye(2), gradient, -0.1 * gradient)
        >>> round(found.stable_rank, 3), round(found.cosine_gradient, 3), round(found.angle, 3)
        (1.146, 1.0, 5.818)
    """
    if weight.ndim < 2 or not weight.shape == gradient.shape == step.shape:
        got = ", ".join(str(tuple(tensor.shape)) for tensor in (weight, gradient, step))
        raise ValueError(f"expected three tensors with the same shape and two or more axes, got {got}")
    w, g, d = (exact(tensor).flatten(1) for tensor in (weight, gradient, step))
    if len(w) > w.shape[1]:
        w, g, d = w.T, g.T, d.T
    if not bool(torch.isfinite(torch.stack([w.sum(), g.sum(), d.sum()])).all()):
        return Geometry(*[math.nan] * len(NAMES))
    size, weights = float(d.norm()), float(w.norm())
    return Geometry(
        stable_rank=_ratio(size**2, float(torch.linalg.eigvalsh(d @ d.T)[-1])) if size else math.nan,
        cosine_gradient=-_cosine(d, g),
        cosine_sign=-_cosine(d, g.sign()),
        cosine_polar=-_polar_cosine(d, g),
        relative_size=_ratio(size, weights),
        angle=_angle(w, w + d),
    )


def _polar_cosine(d: Tensor, g: Tensor) -> float:
    """Return the cosine between d and the polar factor of g, both (m, n) with m ≤ n.

    The left singular vectors U are eigenvectors of g gᵀ. Singular values are computed as norms of the rows of Uᵀ g.
    Unlike square roots of eigenvalues, these norms are accurate relative to the largest singular value.
    """
    left = torch.linalg.eigh(g @ g.T).eigenvectors
    rows = left.T @ g
    values = rows.norm(dim=1)
    kept = values > NEGLIGIBLE * values.max()
    right = rows[kept] / values[kept, None]
    along = float(((left.T @ d)[kept] * right).sum())
    return _ratio(along, float(d.norm()) * math.sqrt(int(kept.sum())))


def _cosine(a: Tensor, b: Tensor) -> float:
    return _ratio(float((a * b).sum()), float(a.norm()) * float(b.norm()))


def _angle(a: Tensor, b: Tensor) -> float:
    """Return the angle in degrees, from the half-angle formula; the arc cosine would lose small angles to rounding."""
    a_size, b_size = a.norm(), b.norm()
    if not float(a_size) or not float(b_size):
        return math.nan
    a, b = a / a_size, b / b_size
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan
