"""Rank measures: worked examples, independent SVD references, and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optbench.metrics import rank

ALL = [
    rank.effective_rank,
    rank.effective_rank_ratio,
    rank.effective_rank_sv,
    rank.stable_rank,
    rank.participation_ratio,
    rank.srank,
    rank.pca99,
    rank.effective_rank_uncentred,
    rank.effective_rank_correlation,
    rank.pca99_centred,
    rank.eigenvalue_count_relative,
    rank.eigenvalue_count,
]
OF_VARIANCE = [
    rank.effective_rank,
    rank.effective_rank_ratio,
    rank.participation_ratio,
    rank.effective_rank_correlation,
    rank.pca99_centred,
    rank.eigenvalue_count_relative,
    rank.eigenvalue_count,
]
SCALE_FREE = [metric for metric in ALL if metric is not rank.eigenvalue_count]
OF_SIGMA = [metric for metric in ALL if metric not in OF_VARIANCE]
EXAMPLE = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(features: Tensor) -> dict[str, float]:
    """Compute all measures with NumPy's SVD and covariance and SciPy's entropy."""
    f = features.double().numpy()
    sigma = np.linalg.svd(f, compute_uv=False)
    lam = np.clip(np.linalg.eigvalsh(np.cov(f, rowvar=False)), 0, None)[::-1]
    lam[len(f) - 1 :] = 0  # rounding noise in values that are exactly zero
    effective = float(np.exp(scipy.stats.entropy(lam)))
    varying = f[:, np.ptp(f, axis=0) > 0]
    rho = np.clip(np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(varying, rowvar=False))), 0, None)
    return {
        "effective_rank_uncentred": float(np.exp(scipy.stats.entropy(np.clip(np.linalg.eigvalsh(f.T @ f), 0, None)))),
        "effective_rank_correlation": float(np.exp(scipy.stats.entropy(rho))),
        "pca99_centred": 1 + int(np.argmax(np.cumsum(lam) / lam.sum() >= 0.99)),
        "eigenvalue_count_relative": int((lam > 0.01 * lam[0]).sum()),
        "eigenvalue_count": int((lam > 1).sum()),
        "effective_rank": effective,
        "effective_rank_ratio": effective / f.shape[1],
        "effective_rank_sv": float(np.exp(scipy.stats.entropy(sigma))),
        "stable_rank": float(np.linalg.norm(f, "fro") ** 2 / np.linalg.norm(f, 2) ** 2),
        "participation_ratio": float(lam.sum() ** 2 / (lam**2).sum()),
        "srank": 1 + int(np.argmax(np.cumsum(sigma) / sigma.sum() >= 0.99)),
        "pca99": 1 + int(np.argmax(np.cumsum(sigma**2) / (sigma**2).sum() >= 0.99)),
    }


@st.composite
def features(draw: st.DrawFn) -> Tensor:
    """Draw features (N, d) with a decaying spectrum and a mean, N above or below d."""
    examples, width = draw(st.integers(2, 40)), draw(st.integers(1, 12))
    seed = draw(st.integers(0, 10_000))
    decay = torch.arange(1, width + 1, dtype=torch.float64) ** -draw(st.floats(0, 2))
    return normal(examples, width, seed=seed) * decay + normal(width, seed=seed + 1)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (rank.effective_rank, 2.14776),
        (rank.effective_rank_ratio, 2.14776 / 3),
        (rank.effective_rank_sv, 2.82843),
        (rank.stable_rank, 1.5),
        (rank.participation_ratio, 1.8),
        (rank.srank, 3.0),
        # σ² = 4, 1, 1.
        (rank.effective_rank_uncentred, 2.38110),
        # Each correlation is -1/3: ρ = 4/3, 4/3, 1/3.
        (rank.effective_rank_correlation, 2.62469),
        (rank.pca99_centred, 3.0),
        (rank.eigenvalue_count_relative, 3.0),
        (lambda f: rank.eigenvalue_count_relative(f, 0.2), 2.0),
        # λ = 1.06203, 1/3, .10464.
        (rank.eigenvalue_count, 1.0),
        (lambda f: rank.eigenvalue_count(f, 0.3), 2.0),
    ],
)
def test_measures_agree_with_worked_examples(metric: Callable[[Tensor], Tensor], expected: float) -> None:
    assert float(metric(EXAMPLE)) == pytest.approx(expected, abs=5e-6)


def test_srank_sums_singular_values_and_pca99_their_squares() -> None:
    turned = torch.linalg.qr(normal(7, 3)).Q @ torch.diag(torch.tensor([98.0, 1.5, 0.5], dtype=torch.float64))
    assert int(rank.srank(turned)) == 2
    assert int(rank.pca99(turned)) == 1


@pytest.mark.parametrize("delta", [0.0, 0.01, 0.25, 0.5])
def test_srank_reaches_an_exact_tie(delta: float) -> None:
    """Of a hundred equal singular values, k are exactly the share k / 100 despite rounding."""
    assert int(rank.srank(torch.linalg.qr(normal(150, 100)).Q * 3.7, delta)) == round(100 * (1 - delta))


@pytest.mark.parametrize("delta", [-0.1, 1.0, math.nan])
def test_srank_refuses_invalid_deltas(delta: float) -> None:
    with pytest.raises(ValueError, match="delta: expected 0 ≤ delta < 1, got"):
        rank.srank(EXAMPLE, delta)


@settings(deadline=None, max_examples=60)
@given(features())
def test_measures_agree_with_an_independent_reference(f: Tensor) -> None:
    if f.shape[1] == 1:  # np.cov drops an axis of length 1
        f = torch.cat([f, -2 * f], dim=1)
    expected = reference(f)
    for metric in ALL:
        assert float(metric(f)) == pytest.approx(expected[metric.__name__], rel=1e-8), metric.__name__


def shaped(kind: str) -> Tensor:
    """Return a feature matrix with the named shape or defect."""
    if kind == "tall":
        return normal(2500, 6).relu() + normal(6, seed=1)
    if kind == "wide":
        return normal(7, 20)
    if kind == "deficient":
        return normal(60, 3) @ normal(3, 9, seed=1) + 2.0
    dead = normal(60, 9).relu()
    dead[:, 2:5] = torch.tensor([0.0, 0.1, -7.3], dtype=torch.float64)
    return dead if kind == "constant units" else torch.where(torch.arange(60)[:, None] < 55, 0.0, dead)


@pytest.mark.parametrize("kind", ["tall", "wide", "deficient", "constant units", "mostly zeros"])
def test_every_shape_agrees_with_numpy(kind: str) -> None:
    f = shaped(kind)
    expected = reference(f)
    for metric in ALL:
        # For a rank-deficient matrix NumPy has singular values of 1e-16, which may differ from ours.
        assert float(metric(f)) == pytest.approx(expected[metric.__name__], rel=1e-10, abs=1e-10), metric.__name__


@settings(deadline=None, max_examples=40)
@given(features(), st.floats(1e-6, 1e6))
def test_ranks_are_invariant_to_scaling_and_rotation(f: Tensor, scale: float) -> None:
    turn = torch.linalg.qr(normal(f.shape[1], f.shape[1], seed=7)).Q
    for metric in SCALE_FREE:
        turned = f if metric is rank.effective_rank_correlation else f @ turn
        assert float(metric(scale * turned)) == pytest.approx(float(metric(f)), rel=1e-8), metric.__name__
    # A threshold is a variance and must scale with the features.
    assert rank.eigenvalue_count(scale * f @ turn, scale**2) == rank.eigenvalue_count(f)


@settings(deadline=None, max_examples=40)
@given(features())
def test_ranks_keep_their_bounds_and_order(f: Tensor) -> None:
    examples, width = f.shape
    known = rank.spectrum(f)
    for metric in ALL:
        if metric is rank.effective_rank_ratio:
            continue
        most = min(examples - (metric in OF_VARIANCE), width)
        assert (metric is not rank.eigenvalue_count) - 1e-9 <= float(metric(known)) <= most * (1 + 1e-9), (
            metric.__name__
        )
    # The participation ratio is the exponential of the Rényi entropy of order 2, never above that of order 1.
    assert rank.participation_ratio(known) <= rank.effective_rank(known) * (1 + 1e-9)


@settings(deadline=None, max_examples=30)
@given(features())
def test_ranks_of_the_covariance_are_invariant_to_shifts(f: Tensor) -> None:
    for metric in OF_VARIANCE:
        assert float(metric(f + 10.0)) == pytest.approx(float(metric(f)), rel=1e-6), metric.__name__


@pytest.mark.parametrize(("examples", "width"), [(50, 8), (8, 8), (9, 8), (5, 8), (2, 8), (30, 1)])
def test_spectrum_agrees_with_direct_decompositions(examples: int, width: int) -> None:
    f = normal(examples, width) @ torch.diag(torch.logspace(0, -5, width, dtype=torch.float64)) + 3.0
    known = rank.spectrum(f)
    assert known.sigma.shape == (min(examples, width),)
    assert known.lam.shape == (width,)
    torch.testing.assert_close(known.sigma, torch.linalg.svdvals(f), rtol=1e-9, atol=1e-13)
    centred = torch.linalg.svdvals(f - f.mean(0)).square() / (examples - 1)
    torch.testing.assert_close(known.lam[: len(centred)], centred, rtol=1e-7, atol=1e-15)
    assert not known.lam[len(centred) :].any()
    assert (known.lam.diff() <= 0).all()
    assert torch.equal(rank.covariance_eigenvalues(f), known.lam)


def test_small_singular_values_are_accurate() -> None:
    """A Gram matrix in float64 would lose all values below 1e-8 of the largest."""
    sigma = torch.tensor([1.0, 1e-6, 1e-10], dtype=torch.float64)
    f = torch.linalg.qr(normal(40, 3)).Q * sigma @ torch.linalg.qr(normal(3, 3, seed=1)).Q
    torch.testing.assert_close(rank.spectrum(f).sigma, sigma, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(4, 30, 6), (2, 3, 5, 6), (1, 12, 3)])
def test_stacked_members_equal_single_members(shape: tuple[int, ...]) -> None:
    f = normal(*shape).float()
    for metric in [*ALL, rank.feature_examples, rank.feature_width]:
        together = metric(f)
        assert together.shape == shape[:-2]
        assert together.dtype == torch.float64
        for index in np.ndindex(*shape[:-2]):
            assert torch.equal(together[index], metric(f[index]))


def test_a_non_finite_member_does_not_affect_others() -> None:
    f = normal(3, 20, 4)
    f[1, 3, 2] = math.nan
    for metric in ALL:
        values = metric(f)
        assert values[1].isnan()
        assert torch.equal(values[0], metric(f[0]))
        assert torch.equal(values[2], metric(f[2]))
    assert rank.spectrum(f).lam[1].isnan().all()
    for centred in (False, True):
        assert rank.note(f[1], centred=centred) == "the features are not finite"


def test_all_zero_features_have_rank_zero_and_a_note() -> None:
    f = torch.stack([torch.zeros(20, 3), normal(20, 3).float()])
    for metric in ALL:
        values = metric(f)
        assert values[0] == 0
        assert values[1] > 0 or metric is rank.eigenvalue_count
    assert rank.note(f[0], centred=True) == "all features are zero"


@pytest.mark.parametrize("level", [0.1, 1e-3, 12345.678])
def test_constant_features_have_exactly_zero_variance(level: float) -> None:
    """Rounding of the mean must not leave a noise spectrum."""
    f = torch.full((37, 3), level, dtype=torch.float64) * torch.tensor([1.0, -0.3, 0.7], dtype=torch.float64)
    assert not rank.covariance_eigenvalues(f).any()
    assert [float(metric(f)) for metric in OF_VARIANCE] == [0] * len(OF_VARIANCE)
    assert [float(metric(f)) for metric in OF_SIGMA] == pytest.approx([1] * len(OF_SIGMA), abs=1e-9)
    assert rank.note(f, centred=True) == "the features do not vary"
    assert rank.note(f, centred=False) is None


def test_one_example_has_a_direction_but_no_variance() -> None:
    f = normal(2, 1, 3)
    for metric in OF_VARIANCE:
        assert metric(f).isnan().all()
    for metric in OF_SIGMA:
        torch.testing.assert_close(metric(f), torch.ones(2, dtype=torch.float64))
    assert rank.note(f[0], centred=True) == "expected at least 2 examples, got 1"
    assert rank.note(f[0], centred=False) == "N = 1 < 10 d = 30: the rank is at most 1"


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (2, 0, 3), (2, 5, 0)])
def test_empty_features_are_nan(shape: tuple[int, ...]) -> None:
    for metric in ALL:
        values = metric(torch.zeros(shape))
        assert values.shape == shape[:-2]
        assert values.isnan().all()
    assert rank.note(torch.zeros(shape[-2:]), centred=True) == f"no features: N = {shape[-2]}, d = {shape[-1]}"


def test_few_examples_are_noted() -> None:
    assert rank.note(normal(10, 4), centred=True) == "N = 10 < 10 d = 40: the rank is at most 4"
    assert rank.note(normal(3, 4), centred=True) == "N = 3 < 10 d = 40: the rank is at most 2"
    assert rank.note(normal(3, 4), centred=False) == "N = 3 < 10 d = 40: the rank is at most 3"
    assert rank.note(normal(40, 4), centred=True) is None


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e37])
def test_features_over_the_whole_range_of_float32_can_be_measured(scale: float) -> None:
    f = torch.randint(-3, 4, (50, 4), generator=torch.Generator().manual_seed(0)).float()
    scaled = f * scale
    assert scaled.isfinite().all()
    for metric in SCALE_FREE:
        torch.testing.assert_close(metric(scaled), metric(f), rtol=0.2 if scale == 1e-44 else 1e-6, atol=0)


@pytest.mark.parametrize(("examples", "width"), [(60, 7), (7, 7), (4, 9)])
def test_pooling_triangles_equals_decomposing_all_examples(examples: int, width: int) -> None:
    decay = torch.logspace(0, -4, width, dtype=torch.float64)
    parts = [normal(n, width, seed=n) * decay + normal(width, seed=n) for n in (examples, 1, 3, examples + 1)]
    parts = [torch.cat([part, torch.full((len(part), 1), 0.1, dtype=torch.float64)], dim=1) for part in parts]
    whole, made = rank.spectrum(torch.cat(parts)), rank.pooled([rank.spectrum(part) for part in parts])
    assert (made.examples, made.width, int(made.varying)) == (2 * examples + 5, width + 1, width)
    torch.testing.assert_close(made.sigma, whole.sigma, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(made.lam, whole.lam, rtol=1e-10, atol=1e-16)
    torch.testing.assert_close(made.rho, whole.rho, rtol=1e-10, atol=1e-14)
    for metric in ALL:
        assert float(metric(made)) == pytest.approx(float(metric(whole)), rel=1e-10), metric.__name__


def test_pooling_ignores_empty_parts_and_keeps_non_finite_values() -> None:
    f, broken = normal(20, 3), torch.full((5, 3), math.inf)
    none = rank.spectrum(torch.zeros(0, 3))
    assert float(rank.effective_rank(rank.pooled([none, rank.spectrum(f)]))) == pytest.approx(
        float(rank.effective_rank(f))
    )
    assert rank.note(rank.pooled([none, none]), centred=True) == "no features: N = 0, d = 3"
    made = rank.pooled([rank.spectrum(f), rank.spectrum(broken)])
    assert all(metric(made).isnan() for metric in ALL)
    assert rank.note(made, centred=False) == "the features are not finite"


def test_constant_units_are_excluded_from_the_correlation_matrix() -> None:
    f = normal(100, 4)
    padded = torch.cat([f, torch.full((100, 2), 3.3, dtype=torch.float64)], dim=1)
    assert float(rank.effective_rank_correlation(padded)) == pytest.approx(float(rank.effective_rank_correlation(f)))
    assert rank.note(padded, centred=True, correlation=True) == "2 of 6 units do not vary and are left out"
    # The scales of units differ by more than squares can represent.
    scales = torch.tensor([1e-200, 1.0, 1e200, -1e30], dtype=torch.float64)
    assert float(rank.effective_rank_correlation(f * scales)) == pytest.approx(
        float(rank.effective_rank_correlation(f))
    )


def test_ranks_of_a_weight_matrix_agree_with_a_worked_example() -> None:
    """σ = 2, 1, 1: entropy rank 2√2, stable rank 6/4."""
    turned = torch.linalg.qr(normal(7, 3)).Q @ torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    for weights in (turned, turned.T * -3.0, rank.singular_values(turned)):
        assert float(rank.weight_effective_rank(weights)) == pytest.approx(2 * math.sqrt(2))
        assert float(rank.weight_stable_rank(weights)) == pytest.approx(1.5)
    broken = normal(2, 3, 4)
    broken[0, 0, 0] = math.inf
    assert rank.weight_stable_rank(broken).isnan().tolist() == [True, False]
    assert rank.weight_note(broken[0]) == "the weights are not finite"
    assert float(rank.weight_effective_rank(torch.zeros(3, 4))) == 0
    assert rank.weight_note(torch.zeros(3, 4)) == "all weights are zero"
    with pytest.raises(ValueError, match=r"expected weights \(\.\.\., m, n\), got shape \(5,\)"):
        rank.singular_values(torch.zeros(5))


def test_variance_beyond_float64_is_nan_with_a_note() -> None:
    f = normal(50, 3) * 1e200
    assert rank.effective_rank(f).isnan()
    assert rank.eigenvalue_count(f).isnan()
    assert rank.note(f, centred=True) == "the variance of the features overflows"
    assert rank.note(normal(50, 3) * 1e-200, centred=True) == "the variance of the features underflows"
    assert float(rank.effective_rank_sv(f)) == pytest.approx(float(rank.effective_rank_sv(f * 1e-200)))


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected features \(\.\.\., N, d\), got shape \(5,\)"):
        rank.spectrum(torch.zeros(5))
