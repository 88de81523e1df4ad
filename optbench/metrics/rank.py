"""Rank: how many dimensions a representation uses.

Legend: `N` examples; `d` width of the features; `...` any leading axes (members).

σ are the singular values of the N×d features as they are, λ the eigenvalues of their *centred* covariance. Both are
computed once, in float64, as a `Spectrum`; every measure takes either the features or a spectrum already computed,
and returns float64 of shape (...). All-zero spectra have rank 0. A measure is NaN where the features are not finite
or empty, and, where it reads λ, for fewer than two examples. `note` says why.

No measure exceeds min(N, d), and those from λ not min(N - 1, d): use N ≥ 10 d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

# Cumulated sums of rounded singular values miss an exact tie with the threshold by about this much, relatively.
_TIE = 1e-12


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values and covariance eigenvalues of features (..., N, d), in float64.

    sigma: (..., min(N, d)) singular values of the features, not centred, descending; NaN for non-finite features.
    lam: (..., d) eigenvalues of the centred covariance (divisor N - 1), descending; NaN likewise, and for N < 2.
    examples: N.
    width: d.
    """

    sigma: Tensor
    lam: Tensor
    examples: int
    width: int


def spectrum(features: Tensor) -> Spectrum:
    """σ and λ of features (..., N, d), from one QR decomposition.

    Subtracting the first example, X = F - 1 f₀ᵀ, keeps both exact for features that do not vary. In
    [1 X] = Q [[r, sᵀ], [0, R₁]] the first column of Q is constant, so the triangle R₁ has the singular values of the
    centred features; and F = Q [[sᵀ + r f₀ᵀ], [R₁]] has those of its own small factor. No Gram matrix is formed:
    small singular values keep their digits.

    Raises ValueError when features have fewer than two axes.
    """
    if features.ndim < 2:
        raise ValueError(f"expected features (..., N, d), got shape {tuple(features.shape)}")
    *lead, examples, width = features.shape
    values = features.detach().double()
    undefined = values.new_full((), torch.nan)
    if examples == 0 or width == 0:
        return Spectrum(values.new_empty((*lead, 0)), undefined.expand(*lead, width), examples, width)
    # Extremes propagate NaN, and unlike isfinite need no temporary of the features' size.
    finite = values.amin((-2, -1)).isfinite() & values.amax((-2, -1)).isfinite()
    if not finite.all():
        # LAPACK raises for the whole batch when one matrix is not finite.
        values = torch.where(finite[..., None, None], values, 0.0)
    first = values[..., :1, :]
    bordered = values.new_ones((*lead, examples, width + 1))
    torch.sub(values, first, out=bordered[..., 1:])
    triangle: Tensor = torch.linalg.qr(bordered, mode="r").R
    centred = triangle[..., 1:, 1:]
    whole = torch.cat([triangle[..., :1, 1:] + triangle[..., :1, :1] * first, centred], dim=-2)
    sigma = torch.where(finite[..., None], torch.linalg.svdvals(whole), undefined)
    if examples == 1:
        return Spectrum(sigma, undefined.expand(*lead, width), examples, width)
    variances = torch.linalg.svdvals(centred).square() / (examples - 1)
    # With N ≤ d the covariance has at least d - N + 1 eigenvalues that are exactly zero.
    lam = torch.nn.functional.pad(variances, (0, width - variances.shape[-1]))
    return Spectrum(sigma, torch.where(finite[..., None], lam, undefined), examples, width)


def covariance_eigenvalues(features: Tensor | Spectrum) -> Tensor:
    """Eigenvalues λ of the centred covariance (divisor N - 1), descending: (..., N, d) -> (..., d)."""
    return _spectrum(features).lam


def effective_rank(features: Tensor | Spectrum) -> Tensor:
    """exp(-Σ p ln p) with p = λ / Σλ: the entropy rank of the covariance spectrum.

    Entropy rank: Roy & Vetterli 2007. Applied to the centred covariance it is our reading of Figure 3 in
    Pascanu et al. 2025, arXiv:2507.12224, which gives no formula. (..., N, d) -> (...), from 1 to min(N - 1, d).
    """
    return _entropy_rank(_spectrum(features).lam)


def effective_rank_ratio(features: Tensor | Spectrum) -> Tensor:
    """`effective_rank` / d: the share of the available dimensions in use. (..., N, d) -> (...)."""
    known = _spectrum(features)
    return effective_rank(known) / known.width


def effective_rank_sv(features: Tensor | Spectrum) -> Tensor:
    """exp(-Σ p ln p) with p = σ / Σσ, features not centred, as the loss-of-plasticity literature uses it.

    Roy & Vetterli 2007. (..., N, d) -> (...), from 1 to min(N, d).
    """
    return _entropy_rank(_spectrum(features).sigma)


def stable_rank(features: Tensor | Spectrum) -> Tensor:
    """Σσ² / σ₁²: squared Frobenius over squared spectral norm (Rudelson & Vershynin 2007). (..., N, d) -> (...)."""
    sigma = _spectrum(features).sigma
    return _guarded((sigma / sigma[..., :1]).square().sum(-1), sigma)


def participation_ratio(features: Tensor | Spectrum) -> Tensor:
    """(Σλ)² / Σλ², the participation ratio of the covariance spectrum (Gao et al. 2017). (..., N, d) -> (...)."""
    lam = _spectrum(features).lam
    return _guarded(1.0 / _shares(lam).square().sum(-1), lam)


def srank(features: Tensor | Spectrum, delta: Annotated[float, Field(gt=0, lt=1)] = 0.01) -> Tensor:
    """Smallest k with Σ_{i≤k} σ_i ≥ (1 - δ) Σσ: σ, not σ² (Kumar et al. 2020, arXiv:2010.14498).

    (..., N, d) -> (...). Ties with the threshold count as reached up to rounding.
    Raises ValueError unless 0 ≤ delta < 1.
    """
    return _smallest_reaching(_spectrum(features).sigma, delta)


def pca99(features: Tensor | Spectrum) -> Tensor:
    """Smallest k with Σ_{i≤k} σ_i² ≥ .99 Σσ², features not centred. (..., N, d) -> (...)."""
    sigma = _spectrum(features).sigma
    return _smallest_reaching((sigma / sigma[..., :1]).square(), 0.01, zero_where=sigma)


def feature_examples(features: Tensor | Spectrum) -> Tensor:
    """N, recorded beside every measure of features. (..., N, d) -> (...)."""
    known = _spectrum(features)
    return known.sigma.new_full(known.sigma.shape[:-1], float(known.examples))


def feature_width(features: Tensor | Spectrum) -> Tensor:
    """d, recorded beside every measure of features. (..., N, d) -> (...)."""
    known = _spectrum(features)
    return known.sigma.new_full(known.sigma.shape[:-1], float(known.width))


def note(features: Tensor | Spectrum, *, centred: bool) -> str | None:
    """What a reader must know about a rank of one N×d matrix: why it is NaN, 0, or capped; None when nothing.

    centred: whether the measure reads λ (True) or σ (False).
    """
    known = _spectrum(features)
    examples, width = known.examples, known.width
    assert known.sigma.ndim == 1, "a note is about one matrix"
    if examples == 0 or width == 0:
        return f"no features: N = {examples}, d = {width}"
    if known.sigma[0].isnan():
        return "the features are not finite"
    if centred and examples < 2:
        return "needs at least 2 examples; 1 came"
    if known.sigma[0] == 0:
        return "all features are zero"
    if centred and known.lam[0] == 0:
        return "the features do not vary"
    if centred and known.lam[0].isinf():
        return "the variance of the features overflows"
    if examples < 10 * width:
        return f"N = {examples} < 10 d = {10 * width}: the rank is at most {min(examples - centred, width)}"
    return None


def _spectrum(features: Tensor | Spectrum) -> Spectrum:
    return features if isinstance(features, Spectrum) else spectrum(features)


def _shares(values: Tensor) -> Tensor:
    """p = values / Σ values, by way of the largest so that nothing underflows."""
    relative = values / values[..., :1]
    return relative / relative.sum(-1, keepdim=True)


def _entropy_rank(values: Tensor) -> Tensor:
    return _guarded(torch.special.entr(_shares(values)).sum(-1).exp(), values)


def _smallest_reaching(values: Tensor, delta: float, zero_where: Tensor | None = None) -> Tensor:
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta needs 0 ≤ delta < 1; {delta} came")
    reached = values.cumsum(-1)
    threshold = (1.0 - delta - _TIE) * reached[..., -1:]
    below = (reached < threshold).sum(-1)
    return _guarded((below + 1).double(), values if zero_where is None else zero_where)


def _guarded(rank: Tensor, values: Tensor) -> Tensor:
    """The rank (...) read from values (..., r): 0 where all are zero, NaN where there are none or one is NaN."""
    if values.shape[-1] == 0:
        return values.new_full(values.shape[:-1], torch.nan)
    rank = torch.where((values == 0).all(-1), 0.0, rank)
    return torch.where(values.isnan().any(-1), torch.nan, rank)
