"""Sparsity measures: worked examples, independent references, bounds and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optbench.metrics import sparsity
from optbench.metrics.sparsity import (
    activation_zero_share,
    dead_share,
    dormant,
    gini,
    hoyer,
    kurtosis,
    near_zero_share,
    zero_share,
)

torch.set_num_threads(1)

OF_WEIGHTS = [hoyer, gini, kurtosis, zero_share, near_zero_share]
OF_ACTIVATIONS = [activation_zero_share, dead_share, partial(dormant, tau=0.025), partial(dormant, tau=0.1)]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gini_by_pairs(w: Tensor) -> float:
    """Compute the Gini index by definition: half the relative mean absolute difference, in n² steps."""
    sizes = np.abs(w.double().numpy())
    return float(np.abs(sizes[:, None] - sizes[None]).sum() / (2 * len(sizes) ** 2 * sizes.mean()))


# Multiples of a power of two, so that scaling by powers of two is exact.
weights = (
    st.lists(st.integers(-1000, 1000).map(lambda i: i / 64), min_size=2, max_size=30)
    .filter(any)
    .map(lambda values: vector(*values))
)


def test_measures_agree_with_worked_examples() -> None:
    w = vector(0, 0, 3, 4)
    assert float(hoyer(w)) == pytest.approx(0.6)
    assert float(gini(w)) == pytest.approx(15 / 28)
    assert float(kurtosis(vector(1, -1, 1, -1))) == 1
    assert float(zero_share(w)) == 0.5
    assert float(near_zero_share(w)) == 0.5
    h = vector(0, 0.05, 1, 2.95)[None]
    assert float(dormant(h, 0.025)) == 0.25
    assert float(dormant(h, 0.1)) == 0.5


@settings(deadline=None, max_examples=80)
@given(weights)
def test_measures_agree_with_independent_references(w: Tensor) -> None:
    n, array = len(w), w.numpy()
    expected = (math.sqrt(n) - np.linalg.norm(array, 1) / np.linalg.norm(array)) / (math.sqrt(n) - 1)
    assert float(hoyer(w)) == pytest.approx(expected, abs=1e-12)
    assert float(gini(w)) == pytest.approx(gini_by_pairs(w), abs=1e-12)
    assert float(zero_share(w)) == np.mean(array == 0)
    assert float(near_zero_share(w)) == np.mean(np.abs(array) < 0.01 * np.sqrt(np.mean(array**2)))
    if np.ptp(array) > 0:
        assert float(kurtosis(w)) == pytest.approx(scipy.stats.kurtosis(array, fisher=False), rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(weights, st.integers(-60, 60), st.randoms(use_true_random=False))
def test_scale_sign_and_order_do_not_matter(w: Tensor, exponent: int, random: object) -> None:
    order = torch.from_numpy(np.random.default_rng(random.getrandbits(32)).permutation(len(w)))  # type: ignore[attr-defined]
    for metric in OF_WEIGHTS:
        expected = metric(w)
        torch.testing.assert_close(metric(-w * 2.0**exponent), expected, equal_nan=True)
        torch.testing.assert_close(metric(w[order]), expected, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(weights)
def test_measures_are_within_their_bounds(w: Tensor) -> None:
    assert -1e-12 <= float(hoyer(w)) <= 1 + 1e-12
    assert -1e-12 <= float(gini(w)) <= 1 - 1 / len(w) + 1e-12
    assert kurtosis(w).isnan() or float(kurtosis(w)) >= 1 - 1e-12
    assert float(zero_share(w)) <= float(near_zero_share(w)) <= 1


@pytest.mark.parametrize("n", [2, 5, 1000])
def test_measures_have_their_extreme_values(n: int) -> None:
    equal, single = torch.full((n,), -0.1), torch.zeros(n)
    single[n // 2] = 0.3
    assert float(hoyer(equal)) == pytest.approx(0, abs=1e-12)
    assert float(gini(equal)) == pytest.approx(0, abs=1e-12)
    assert float(hoyer(single)) == pytest.approx(1)
    assert float(gini(single)) == pytest.approx(1 - 1 / n)
    assert float(zero_share(single)) == pytest.approx(1 - 1 / n)


def test_moving_weight_to_a_larger_one_raises_gini() -> None:
    """Dalton's principle (Hurley & Rickard 2009)."""
    assert float(gini(vector(1, 2, 3, 4))) < float(gini(vector(0.5, 2, 3, 4.5)))


def test_kurtosis_of_a_normal_sample_is_three() -> None:
    sample = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert float(kurtosis(sample)) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e150, 1e300])
def test_extreme_scales_neither_underflow_nor_overflow(scale: float) -> None:
    w = vector(0.5, 1, 2, -4)
    for metric in OF_WEIGHTS:
        torch.testing.assert_close(metric(w * scale), metric(w))


def test_near_zero_is_strictly_below_its_share_of_the_rms() -> None:
    w = vector(1, -1, 1, -1)
    assert float(near_zero_share(w, relative=1.0)) == 0
    assert float(near_zero_share(w, relative=1.0 + 1e-9)) == 1


@pytest.mark.parametrize("metric", [hoyer, gini, kurtosis, near_zero_share])
def test_a_zero_vector_is_nan_and_does_not_affect_others(metric: Callable[[Tensor], Tensor]) -> None:
    w = torch.tensor([[0.0, 0, 0], [1, 2, 3]])
    values = metric(w)
    assert values[0].isnan()
    assert torch.equal(values[1], metric(w[1]))
    assert sparsity.note(w[0]) == "all weights are zero"
    assert float(zero_share(w)[0]) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("metric", OF_WEIGHTS)
def test_a_non_finite_vector_is_nan_and_does_not_affect_others(metric: Callable[[Tensor], Tensor], bad: float) -> None:
    w = torch.tensor([[1.0, bad, 0], [1, 2, 3]])
    values = metric(w)
    assert values[0].isnan()
    assert torch.equal(values[1], metric(w[1]))
    assert sparsity.note(w[0]) == "the weights are not finite"


def test_few_or_equal_weights_have_defined_or_nan_values() -> None:
    none, one, equal = torch.zeros(2, 0), torch.tensor([0.3]), torch.full((7,), 0.1)
    for metric in OF_WEIGHTS:
        assert metric(none).shape == (2,)
        assert metric(none).isnan().all()
    assert sparsity.note(none[0]) == "no weights"
    assert hoyer(one).isnan()
    assert kurtosis(one).isnan()
    assert float(gini(one)) == 0
    assert sparsity.note(one) == "expected at least 2 weights, got 1"
    assert kurtosis(equal).isnan(), "rounding of the mean must not count as variance"
    assert sparsity.note(equal) == "the weights do not vary"
    assert sparsity.note(vector(1, 2)) is None


@pytest.mark.parametrize("metric", OF_WEIGHTS)
def test_weights_of_stacked_members_equal_single_members(metric: Callable[[Tensor], Tensor]) -> None:
    w = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    together = metric(w)
    assert together.dtype == torch.float64
    for index in np.ndindex(2, 3):
        torch.testing.assert_close(together[index], metric(w[index]), rtol=1e-12, atol=0)


def test_activations_agree_with_plain_counts() -> None:
    h = torch.relu(torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0)) - 0.5)
    h[..., 2] = 0
    h[..., 5] *= 0.001
    for member, values in enumerate(h.double().numpy()):
        activity = np.abs(values).mean(0)
        assert float(activation_zero_share(h)[member]) == np.mean(values == 0)
        assert float(dead_share(h)[member]) == np.mean([not column.any() for column in values.T])
        for tau in (0.025, 0.1, 1.0):
            expected = np.mean([unit / activity.mean() <= tau for unit in activity])
            assert float(dormant(h, tau)[member]) == expected
    assert (dead_share(h) >= 1 / 8).all()
    assert (dormant(h, 0.025) >= 2 / 8).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_measures_of_activations_are_scale_free_and_dead_units_are_dormant(seed: int, scale: float) -> None:
    h = torch.relu(torch.randn(6, 10, generator=torch.Generator().manual_seed(seed)).double() - 1.0)
    if not h.any():
        return
    for metric in OF_ACTIVATIONS:
        assert torch.equal(metric(h * scale), metric(h))
    assert float(dead_share(h)) <= float(dormant(h, 0.025)) <= float(dormant(h, 0.1))
    assert float(dead_share(h)) <= float(activation_zero_share(h))


def test_all_zero_activations_are_dead_and_have_no_dormant_share() -> None:
    h = torch.zeros(5, 3)
    assert float(activation_zero_share(h)) == 1
    assert float(dead_share(h)) == 1
    assert dormant(h, 0.1).isnan()
    assert sparsity.activation_note(h) == "all features are zero"


@pytest.mark.parametrize("metric", OF_ACTIVATIONS)
def test_undefined_activations_are_nan(metric: Callable[[Tensor], Tensor]) -> None:
    for shape in [(2, 0, 3), (2, 4, 0), (2, 0, 0)]:
        assert metric(torch.zeros(shape)).shape == (2,)
        assert metric(torch.zeros(shape)).isnan().all()
        assert sparsity.activation_note(torch.zeros(shape[1:])) == f"no features: N = {shape[1]}, d = {shape[2]}"
    h = torch.ones(2, 4, 3)
    h[0, 1, 1] = math.inf
    values = metric(h)
    assert values[0].isnan()
    assert torch.equal(values[1], metric(h[1]))
    assert sparsity.activation_note(h[0]) == "the features are not finite"
    assert sparsity.activation_note(h[1]) is None


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected weights of shape \(\.\.\., n\)"):
        hoyer(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"expected features \(\.\.\., N, d\), got shape \(3,\)"):
        dead_share(torch.zeros(3))


def test_activity_over_parts_equals_that_over_all_examples() -> None:
    draws = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 4, generator=draws).relu() for n in (30, 7, 1)]
    made, whole = sparsity.pooled_activity([sparsity.activity(part) for part in parts]), torch.cat(parts)
    assert sparsity.activation_zero_share(made) == sparsity.activation_zero_share(whole)
    torch.testing.assert_close(made.means, sparsity.activity(whole).means, rtol=1e-14, atol=0)
    assert made.examples == 38
