"""Rank: the number of dimensions that a representation uses.

Legend: `N` examples; `d` width of the features; `...` any leading axes (members).

σ are the singular values of the uncentred N×d features, λ the eigenvalues of the features' *centred* covariance, and ρ
the eigenvalues of the features' correlation matrix. All are computed in float64 from one decomposition, a `Spectrum`.
Every metric takes either the features or a spectrum, and returns float64 of shape (...). All-zero spectra have rank 0.
A metric is NaN if the features are empty or not finite; metrics of λ or ρ are also NaN for fewer than two examples.
`note` gives the reason.

No rank exceeds min(N, d), and no rank based on λ or ρ exceeds min(N - 1, d). Use N ≥ 10 d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

# Relative error by which cumulative sums of rounded singular values miss an exact tie with the threshold.
_TIE = 1e-12
_BLOCK = 1000
"""Minimum number of examples per decomposed block. For 10,000 × 100 features, blocks reduce the time to three fifths,
and the memory to that of a single block."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The decomposition of features F (..., N, d) shared by all metrics of rank, in float64.

    Let X = F - 1 f₀ᵀ be the features relative to the first example f₀, where 1 is a column of ones, and let
    [1, X] = Q T be a QR decomposition. The first column of Q is constant, so T without its first row and column has the
    singular values of the centred features. If the first row of T is [r, tᵀ] and its other rows are [0, S], then
    F = Q [tᵀ + r f₀ᵀ; S], where the semicolon separates rows. F therefore has the singular values of this small factor.
    Subtracting the first example keeps both sets of singular values exact for constant units. No Gram matrix is formed,
    so small singular values stay accurate.

    first: (..., d) f₀.
    triangle: (..., min(N, d + 1), d + 1) T, zero for non-finite features.
    finite: (...) True where all features are finite.
    examples: N.
    width: d.
    """

    first: Tensor
    triangle: Tensor
    finite: Tensor
    examples: int
    width: int

    @cached_property
    def sigma(self) -> Tensor:
        """(..., min(N, d)) singular values of F, not centred, descending; NaN for features that are not finite."""
        if self.examples == 0 or self.width == 0:
            return self.triangle.new_empty((*self.finite.shape, 0))
        top = self.triangle[..., :1, 1:] + self.triangle[..., :1, :1] * self.first[..., None, :]
        sigma = torch.linalg.svdvals(torch.cat([top, self._centred], dim=-2))
        return torch.where(self.finite[..., None], sigma, torch.nan)

    @cached_property
    def lam(self) -> Tensor:
        """(..., d) eigenvalues of the centred covariance (divisor N - 1), descending.

        NaN for features that are not finite, and for N < 2.
        """
        return self._eigenvalues(self._centred)

    @cached_property
    def rho(self) -> Tensor:
        """(..., d) eigenvalues of the correlation matrix of non-constant units, descending, padded with zeros.

        NaN for features that are not finite, and for N < 2.
        """
        if self.examples < 2 or self.width == 0:
            return self._eigenvalues(self._centred)
        largest = self._centred.abs().amax(-2, keepdim=True)
        relative = torch.where(largest > 0, self._centred / largest, 0.0)
        norms = torch.linalg.vector_norm(relative, dim=-2, keepdim=True) / (self.examples - 1) ** 0.5
        return self._eigenvalues(torch.where(norms > 0, relative / norms, 0.0))

    @cached_property
    def varying(self) -> Tensor:
        """(...) the number of non-constant units; constant units have no correlation and are excluded from ρ."""
        return (self._centred != 0).any(-2).sum(-1)

    @property
    def _centred(self) -> Tensor:
        return self.triangle[..., 1:, 1:]

    def _eigenvalues(self, factor: Tensor) -> Tensor:
        """Return the eigenvalues of factorᵀ factor / (N - 1) for factor (..., r, d), r ≤ d; d - r of them are 0."""
        if self.examples < 2 or self.width == 0:
            return self.triangle.new_full((*self.finite.shape, self.width), torch.nan)
        found = torch.linalg.svdvals(factor).square() / (self.examples - 1)
        found = torch.nn.functional.pad(found, (0, self.width - found.shape[-1]))
        return torch.where(self.finite[..., None], found, torch.nan)


def spectrum(features: Tensor) -> Spectrum:
    """Compute the spectrum of features (..., N, d) by QR decomposition.

    Raises:
        ValueError: features have fewer than two axes.
    """
    if features.ndim < 2:
        raise ValueError(f"expected features (..., N, d), got shape {tuple(features.shape)}")
    *lead, examples, width = features.shape
    values = features.detach()
    values = values if values.is_floating_point() else values.double()
    exact = torch.zeros((), dtype=torch.float64, device=values.device)
    if examples == 0 or width == 0:
        finite = torch.ones(lead, dtype=torch.bool, device=values.device)
        return Spectrum(exact.new_zeros(*lead, width), exact.new_zeros(*lead, 0, width + 1), finite, examples, width)
    # min and max propagate NaN and, unlike isfinite, need no temporary of the features' size
    finite = values.amin((-2, -1)).isfinite() & values.amax((-2, -1)).isfinite()
    if not finite.all():
        # LAPACK raises for the whole batch if one matrix is not finite
        values = torch.where(finite[..., None, None], values, 0.0)
    first = values[..., 0, :].double()
    triangles = []
    for block in torch.split(values, max(_BLOCK, 8 * width), dim=-2):
        bordered = exact.new_ones((*lead, block.shape[-2], width + 1))
        torch.sub(block, first[..., None, :], out=bordered[..., 1:])
        triangles.append(torch.linalg.qr(bordered, mode="r").R)
    return Spectrum(first, _stacked(triangles), finite, examples, width)


def pooled(parts: Sequence[Spectrum]) -> Spectrum:
    """Compute the spectrum of the examples of all `parts` together. All parts must have the same width.

    Features relative to another example g satisfy [1, F - 1 gᵀ] = [1, F - 1 f₀ᵀ] [1, (f₀ - g)ᵀ; 0, I], so replacing f₀
    by g changes only the first row of a part's triangle. Once all parts use the same g, their triangles stacked by rows
    have the same Gram matrix, and hence the same triangular factor, as their matrices [1, F - 1 gᵀ] stacked by rows.
    """
    filled = [part for part in parts if part.examples] or parts[:1]
    if len(filled) == 1:
        return filled[0]
    first, rows = filled[0].first, []
    for part in filled:
        moved = part.triangle.clone()
        moved[..., :1, 1:] += moved[..., :1, :1] * (part.first - first)[..., None, :]
        rows.append(moved)
    finite = torch.stack([part.finite for part in filled]).all(0)
    return Spectrum(first, _stacked(rows), finite, sum(part.examples for part in filled), filled[0].width)


def _stacked(triangles: Sequence[Tensor]) -> Tensor:
    """Stack triangles (..., r, d + 1) by rows, and return the triangular factor of the stacked matrix."""
    if len(triangles) == 1:
        return triangles[0]
    triangle: Tensor = torch.linalg.qr(torch.cat(list(triangles), -2), mode="r").R
    return triangle


def covariance_eigenvalues(features: Tensor | Spectrum) -> Tensor:
    """Return the eigenvalues λ of the centred covariance (divisor N - 1), descending: (..., N, d) -> (..., d)."""
    return _spectrum(features).lam


def effective_rank(features: Tensor | Spectrum) -> Tensor:
    """Return exp(-Σ p ln p) with p = λ / Σλ, the entropy rank of the covariance spectrum.

    The entropy rank is that of Roy & Vetterli 2007. Its use with the centred covariance is our interpretation of
    Figure 3 in Pascanu et al. 2025, arXiv:2507.12224, which gives no formula. (..., N, d) -> (...), from 1 to
    min(N - 1, d).

    Example:
        >>> features = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
        >>> round(effective_rank(features).item(), 3)
        2.148
    """
    return _entropy_rank(_spectrum(features).lam)


def effective_rank_ratio(features: Tensor | Spectrum) -> Tensor:
    """Return `effective_rank` / d, the share of available dimensions in use. (..., N, d) -> (...)."""
    known = _spectrum(features)
    return effective_rank(known) / known.width


def effective_rank_uncentred(features: Tensor | Spectrum) -> Tensor:
    """Return exp(-Σ p ln p) with p = σ² / Σσ², the entropy rank of the uncentred second moment.

    Source: Roy & Vetterli 2007. (..., N, d) -> (...), from 1 to min(N, d).
    """
    sigma = _spectrum(features).sigma
    return _entropy_rank((sigma / sigma[..., :1]).square(), zero_where=sigma)


def effective_rank_correlation(features: Tensor | Spectrum) -> Tensor:
    """Return exp(-Σ p ln p) with p = ρ / Σρ, the entropy rank of the correlation matrix.

    Every unit has equal weight; constant units have no correlation and are left out. (..., N, d) -> (...), from 1 to
    min(N - 1, d).
    """
    return _entropy_rank(_spectrum(features).rho)


def effective_rank_sv(features: Tensor | Spectrum) -> Tensor:
    """Return exp(-Σ p ln p) with p = σ / Σσ, the entropy rank of the uncentred singular values.

    Source: Roy & Vetterli 2007. This form is used in the loss-of-plasticity literature. (..., N, d) -> (...), from 1 to
    min(N, d).

    Example:
        >>> features = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
        >>> round(effective_rank_sv(features).item(), 3)
        2.828
    """
    return _entropy_rank(_spectrum(features).sigma)


def stable_rank(features: Tensor | Spectrum) -> Tensor:
    """Return Σσ² / σ₁², squared Frobenius over squared spectral norm (Rudelson & Vershynin 2007).

    (..., N, d) -> (...).
    """
    sigma = _spectrum(features).sigma
    return _guarded((sigma / sigma[..., :1]).square().sum(-1), sigma)


def participation_ratio(features: Tensor | Spectrum) -> Tensor:
    """Return the participation ratio (Σλ)² / Σλ² of the covariance (Gao et al. 2017). (..., N, d) -> (...)."""
    lam = _spectrum(features).lam
    return _guarded(1.0 / _shares(lam).square().sum(-1), lam)


def srank(features: Tensor | Spectrum, delta: Annotated[float, Field(gt=0, lt=1)] = 0.01) -> Tensor:
    """Return the smallest k with Σ_{i≤k} σ_i ≥ (1 - δ) Σσ (Kumar et al. 2020, arXiv:2010.14498).

    The sums are over σ, not σ². A sum that equals the threshold up to rounding counts as reaching it.
    (..., N, d) -> (...).

    Raises:
        ValueError: delta is not in [0, 1).
    """
    return _smallest_reaching(_spectrum(features).sigma, delta)


def pca99(features: Tensor | Spectrum) -> Tensor:
    """Return the smallest k with Σ_{i≤k} σ_i² ≥ .99 Σσ², for uncentred features. (..., N, d) -> (...)."""
    sigma = _spectrum(features).sigma
    return _smallest_reaching((sigma / sigma[..., :1]).square(), 0.01, zero_where=sigma)


def pca99_centred(features: Tensor | Spectrum) -> Tensor:
    """Return the smallest k with Σ_{i≤k} λ_i ≥ .99 Σλ, i.e. 99% of the variance. (..., N, d) -> (...)."""
    lam = _spectrum(features).lam
    return _smallest_reaching(lam / lam[..., :1], 0.01, zero_where=lam)


def eigenvalue_count(features: Tensor | Spectrum, threshold: Annotated[float, Field(gt=0)] = 1.0) -> Tensor:
    """Return the number of covariance eigenvalues λ above an absolute threshold.

    The number depends on the scale of the features. (..., N, d) -> (...), from 0 to min(N - 1, d).
    """
    lam = _spectrum(features).lam
    return _counted(lam > threshold, lam)


def eigenvalue_count_relative(
    features: Tensor | Spectrum, relative: Annotated[float, Field(gt=0, lt=1)] = 0.01
) -> Tensor:
    """Return the number of covariance eigenvalues λ > `relative` · λ₁. (..., N, d) -> (...), at most min(N - 1, d)."""
    lam = _spectrum(features).lam
    return _counted(lam / lam[..., :1] > relative, lam)


def feature_examples(features: Tensor | Spectrum) -> Tensor:
    """Return N, recorded with every metric of features. (..., N, d) -> (...)."""
    known = _spectrum(features)
    return known.triangle.new_full(known.finite.shape, float(known.examples))


def feature_width(features: Tensor | Spectrum) -> Tensor:
    """Return d, recorded with every metric of features. (..., N, d) -> (...)."""
    known = _spectrum(features)
    return known.triangle.new_full(known.finite.shape, float(known.width))


def note(features: Tensor | Spectrum, *, centred: bool, correlation: bool = False) -> str | None:
    """Return why a rank of one N×d matrix is NaN, 0 or limited by its size, else None.

    centred: whether the metric uses λ or ρ instead of σ. correlation: whether it uses ρ.
    """
    known = _spectrum(features)
    examples, width = known.examples, known.width
    assert known.finite.ndim == 0, "expected one matrix without leading axes"
    if examples == 0 or width == 0:
        return f"no features: N = {examples}, d = {width}"
    if not known.finite:
        return "the features are not finite"
    if centred and examples < 2:
        return "expected at least 2 examples, got 1"
    if not known.first.any() and not known.varying:
        return "all features are zero"
    if centred and not known.varying:
        return "the features do not vary"
    if centred and not correlation and known.lam[0].isinf():
        return "the variance of the features overflows"
    if centred and not correlation and known.lam[0] == 0:
        return "the variance of the features underflows"
    said = []
    if correlation and known.varying < width:
        said.append(f"{width - int(known.varying)} of {width} units do not vary and are left out")
    if examples < 10 * width:
        said.append(f"N = {examples} < 10 d = {10 * width}: the rank is at most {min(examples - centred, width)}")
    return "; ".join(said) or None


@dataclass(frozen=True, eq=False)
class SingularValues:
    """Singular values sigma (..., r) of weight matrices, in float64, descending; NaN for non-finite matrices."""

    sigma: Tensor


def singular_values(weights: Tensor) -> SingularValues:
    """Return the singular values of weight matrices (..., m, n); raise ValueError for fewer than two axes."""
    if weights.ndim < 2:
        raise ValueError(f"expected weights (..., m, n), got shape {tuple(weights.shape)}")
    values = weights.detach().double()
    finite = values.isfinite().all(-1).all(-1)
    sigma = torch.linalg.svdvals(torch.where(finite[..., None, None], values, 0.0))
    return SingularValues(torch.where(finite[..., None], sigma, torch.nan))


def weight_effective_rank(weights: Tensor | SingularValues) -> Tensor:
    """Return exp(-Σ p ln p) with p = σ / Σσ and σ the singular values of a weight matrix (Roy & Vetterli 2007).

    (..., m, n) -> (...).
    """
    return _entropy_rank(_singular_values(weights).sigma)


def weight_stable_rank(weights: Tensor | SingularValues) -> Tensor:
    """Return Σσ² / σ₁² with σ the singular values of a weight matrix (Rudelson & Vershynin 2007).

    (..., m, n) -> (...).
    """
    sigma = _singular_values(weights).sigma
    return _guarded((sigma / sigma[..., :1]).square().sum(-1), sigma)


def weight_note(weights: Tensor | SingularValues) -> str | None:
    """Return why a rank of one weight matrix (m, n) is NaN or 0, else None."""
    sigma = _singular_values(weights).sigma
    assert sigma.ndim == 1, "expected one matrix without leading axes"
    if not len(sigma):
        return "no weights"
    if sigma[0].isnan():
        return "the weights are not finite"
    return "all weights are zero" if sigma[0] == 0 else None


def _singular_values(weights: Tensor | SingularValues) -> SingularValues:
    return weights if isinstance(weights, SingularValues) else singular_values(weights)


def _spectrum(features: Tensor | Spectrum) -> Spectrum:
    return features if isinstance(features, Spectrum) else spectrum(features)


def _shares(values: Tensor) -> Tensor:
    """Return p = values / Σ values, scaled by the largest to avoid underflow."""
    relative = values / values[..., :1]
    return relative / relative.sum(-1, keepdim=True)


def _entropy_rank(values: Tensor, zero_where: Tensor | None = None) -> Tensor:
    rank = torch.special.entr(_shares(values)).sum(-1).exp()
    return _guarded(rank, values if zero_where is None else zero_where)


def _counted(above: Tensor, lam: Tensor) -> Tensor:
    """Return the number of λ (..., d) for which `above` is True; NaN where an eigenvalue is infinite."""
    rank = above.sum(-1).double()
    return _guarded(torch.where(lam.isinf().any(-1), torch.nan, rank), lam)


def _smallest_reaching(values: Tensor, delta: float, zero_where: Tensor | None = None) -> Tensor:
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta: expected 0 ≤ delta < 1, got {delta}")
    reached = values.cumsum(-1)
    threshold = (1.0 - delta - _TIE) * reached[..., -1:]
    below = (reached < threshold).sum(-1)
    return _guarded((below + 1).double(), values if zero_where is None else zero_where)


def _guarded(rank: Tensor, values: Tensor) -> Tensor:
    """Return `rank` (...), but 0 where all values (..., r) are zero, and NaN where a value is NaN or r = 0."""
    if values.shape[-1] == 0:
        return values.new_full(values.shape[:-1], torch.nan)
    rank = torch.where((values == 0).all(-1), 0.0, rank)
    return torch.where(values.isnan().any(-1), torch.nan, rank)
