"""Pruning keeps exactly the largest weights despite ties; measures of a curve agree with other ways to compute them."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from torch import Tensor

from optbench.metrics.pruning import (
    KEEP,
    SCOPES,
    Scope,
    holding_sparsity,
    kept,
    mask,
    prune,
    pruned_accuracy,
    pruning_area,
    rank_weights,
)

BRIEFLY = settings(max_examples=40, deadline=None)

SPARSITY = 1 - np.array(KEEP)
OUTPUT = "head.weight"
# Few distinct values, so that most weights are tied and many are zero.
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-40, math.inf])
VALUES = st.one_of(TIED, st.floats(width=32, allow_nan=False))
FRACTIONS = st.one_of(st.sampled_from(KEEP), st.integers(0, 1000).map(lambda k: k / 1000))


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Tensor]:
    """Draw a network of a hidden layer, a convolution and an output layer of small sizes, with a bias."""
    found = {}
    for name, axes in (("hidden.weight", 2), ("bias", 1), ("conv.weight", 4), (OUTPUT, 2)):
        shape = draw(st.tuples(*[st.integers(1, 4 if axes < 4 else 2)] * axes))
        size = math.prod(shape)
        values = draw(st.lists(draw(st.sampled_from([TIED, VALUES])), min_size=size, max_size=size))
        found[name] = torch.tensor(values).reshape(shape)
    return found


CURVES = st.lists(st.integers(0, 100), min_size=len(KEEP), max_size=len(KEEP)).map(lambda v: np.array(v) / 100)


def by_hand(weights: dict[str, Tensor], keep: float, scope: Scope) -> dict[str, list[bool]]:
    """Compute the mask by sorting in Python with exact decimal fractions."""
    share = Fraction(repr(keep))
    layers = {name: w.flatten().tolist() for name, w in weights.items() if w.ndim >= 2}
    pools = [list(layers)] if scope == "global" else [[name] for name in layers]
    found: dict[str, list[bool]] = {name: [False] * len(values) for name, values in layers.items()}
    for pool in pools:
        doubled = scope == "layer" and pool == [OUTPUT]
        everything = [(-abs(value), place) for place, value in enumerate(v for name in pool for v in layers[name])]
        owners = [(name, i) for name in pool for i in range(len(layers[name]))]
        count = math.ceil(min(Fraction(1), 2 * share if doubled else share) * len(everything))
        for _, place in sorted(everything)[:count]:
            name, i = owners[place]
            found[name][i] = True
    return found


@pytest.mark.parametrize("scope", SCOPES)
@BRIEFLY
@given(weights=networks(), keep=FRACTIONS)
def test_exactly_the_largest_weights_are_kept_and_ties_keep_the_first(
    scope: Scope, weights: dict[str, Tensor], keep: float
) -> None:
    found = mask(weights, keep, scope, OUTPUT)
    assert {name: stays.flatten().tolist() for name, stays in found.items()} == by_hand(weights, keep, scope)
    assert all(stays.shape == weights[name].shape for name, stays in found.items())


@pytest.mark.parametrize("scope", SCOPES)
@BRIEFLY
@given(weights=networks())
def test_every_fraction_keeps_its_count_and_contains_smaller_fractions(
    scope: Scope, weights: dict[str, Tensor]
) -> None:
    ranking = rank_weights(weights, scope)
    before: dict[str, Tensor] = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in ranking.places.items()}
    total = sum(w.numel() for w in ranking.places.values())
    for keep in KEEP:
        found = ranking.mask(keep)
        if scope == "global":
            assert sum(int(stays.sum()) for stays in found.values()) == math.ceil(Fraction(repr(keep)) * total)
        else:
            for stays in found.values():
                assert int(stays.sum()) == math.ceil(Fraction(repr(keep)) * stays.numel())
        assert all(bool((stays | ~before[name]).all()) for name, stays in found.items())
        before = found
    assert all(bool(stays.all()) for stays in before.values())


@pytest.mark.parametrize("scope", SCOPES)
@BRIEFLY
@given(weights=networks(), keep=FRACTIONS)
def test_pruning_keeps_the_bits_of_a_weight_or_sets_it_to_zero(
    scope: Scope, weights: dict[str, Tensor], keep: float
) -> None:
    original = {name: weight.clone() for name, weight in weights.items()}
    stays = mask(weights, keep, scope, OUTPUT)
    for name, pruned in prune(weights, keep, scope, OUTPUT).items():
        expected = original[name] if name == "bias" else torch.where(stays[name], original[name], torch.zeros(()))
        assert torch.equal(pruned.view(torch.int32), expected.view(torch.int32)), "bits are kept, including those of -0"
        assert torch.equal(weights[name].view(torch.int32), original[name].view(torch.int32)), (
            "the input is not modified"
        )


@pytest.mark.parametrize("scope", SCOPES)
@BRIEFLY
@given(weights=networks())
def test_keeping_all_is_the_network_itself_and_keeping_none_is_zero(scope: Scope, weights: dict[str, Tensor]) -> None:
    for name, same in prune(weights, 1.0, scope, OUTPUT).items():
        assert torch.equal(same.view(torch.int32), weights[name].view(torch.int32))
    for name, nothing in prune(weights, 0.0, scope, OUTPUT).items():
        assert torch.equal(nothing, weights[name]) if name == "bias" else not nothing.any()


def test_scopes_differ_if_layers_differ_in_scale() -> None:
    weights = {"small": torch.full((2, 5), 0.1), "large": torch.full((1, 10), 10.0), OUTPUT: torch.full((2, 5), 1.0)}
    whole = {name: int(stays.sum()) for name, stays in mask(weights, 0.5, "global", OUTPUT).items()}
    assert whole == {"small": 0, "large": 10, OUTPUT: 5}
    single = {name: int(stays.sum()) for name, stays in mask(weights, 0.3, "layer", OUTPUT).items()}
    assert single == {"small": 3, "large": 3, OUTPUT: 6}
    assert mask(weights, 0.7, "layer", OUTPUT)[OUTPUT].all(), "the output layer is at most kept completely"


def test_there_are_twenty_fractions_from_a_hundredth_to_one() -> None:
    assert len(KEEP) == 20
    assert (KEEP[0], KEEP[-1]) == (0.01, 1.0)
    steps = np.diff(np.log(KEEP))
    np.testing.assert_allclose(steps, math.log(100) / 19)


@given(st.integers(0, 1000), st.integers(0, 10**6))
def test_fractions_of_a_count_are_rounded_up_in_decimal_arithmetic(thousandths: int, n: int) -> None:
    assert kept(thousandths / 1000, n) == -(-thousandths * n // 1000)


def test_counts_are_exact_where_floating_point_is_wrong() -> None:
    assert math.ceil(0.07 * 100) == 8, "floating-point rounding gives 8"
    assert (kept(0.07, 100), kept(0.01, 1000), kept(1.0, 266_200), kept(1e-9, 5), kept(0.0, 5)) == (
        7,
        10,
        266_200,
        1,
        0,
    )


@pytest.mark.parametrize("keep", [-0.1, 1.1, math.nan, math.inf])
def test_invalid_fractions_are_refused(keep: float) -> None:
    weights = {OUTPUT: torch.ones(2, 2)}
    for refused in (
        lambda: kept(keep, 4),
        lambda: mask(weights, keep, "layer"),
        lambda: pruned_accuracy([0.0, 0.5], [1.0, 0.5], keep),
    ):
        with pytest.raises(ValueError, match="expected keep to be"):
            refused()


def test_unknown_scopes_and_output_layers_are_refused() -> None:
    weights = {"a": torch.ones(2, 2), "bias": torch.ones(2)}
    with pytest.raises(ValueError, match="expected scope to be one of global, layer, got row"):
        mask(weights, 0.5, "row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected output to be one of a, got bias"):
        mask(weights, 0.5, "layer", "bias")


@pytest.mark.parametrize("scope", SCOPES)
def test_a_network_without_weights_has_nothing_to_prune(scope: Scope) -> None:
    bias = {"bias": torch.ones(3)}
    assert mask(bias, 0.5, scope) == {}
    assert prune(bias, 0.5, scope) == bias


def test_measures_agree_with_a_worked_example() -> None:
    sparsity, accuracy = (0, 0.5, 1), (0.9, 0.8, 0.1)
    assert float(pruning_area(sparsity, accuracy)) == pytest.approx(0.65)
    assert float(holding_sparsity(sparsity, accuracy)) == 0
    assert float(holding_sparsity(sparsity, accuracy, share=0.8)) == 0.5
    assert float(pruned_accuracy(sparsity, accuracy, 0.5)) == 0.8
    assert float(pruned_accuracy(sparsity, accuracy, 1.0)) == 0.9


@given(CURVES, st.permutations(range(len(KEEP))))
def test_the_area_is_the_trapezoid_sum_in_any_order(accuracy: np.ndarray, order: list[int]) -> None:
    expected = trapezoid(accuracy[::-1], SPARSITY[::-1])
    assert float(pruning_area(SPARSITY[order], accuracy[order])) == pytest.approx(expected, abs=1e-12)


def test_the_area_covers_only_the_measured_range() -> None:
    assert float(pruning_area(SPARSITY, np.full(20, 0.8))) == pytest.approx(0.8 * 0.99)


@given(CURVES, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_the_holding_sparsity_is_the_last_before_the_first_failure(accuracy: np.ndarray, share: float) -> None:
    found = float(holding_sparsity(SPARSITY, accuracy, share))
    dense = Fraction(repr(float(accuracy[-1])))
    if dense == 0:
        assert math.isnan(found)
        return
    threshold = Fraction(repr(share)) * dense
    best = 0.0
    for sparsity, value in zip(SPARSITY[::-1].tolist(), accuracy[::-1].tolist(), strict=True):
        if Fraction(repr(value)) < threshold:
            break
        best = sparsity
    assert found == best


@given(CURVES)
def test_on_a_falling_curve_the_holding_sparsity_is_the_largest_that_holds(accuracy: np.ndarray) -> None:
    falling = np.sort(accuracy) + 0.1
    holds = falling >= 0.99 * falling[-1]
    assert float(holding_sparsity(SPARSITY, falling)) == SPARSITY[holds].max()


def test_a_curve_that_recovers_holds_only_up_to_its_first_drop() -> None:
    assert float(holding_sparsity([0, 0.2, 0.4, 0.6, 0.8], [0.9, 0.9, 0.5, 0.9, 0.9])) == 0.2
    assert float(holding_sparsity([0, 0.2, 0.4, 0.6, 0.8], [0.9, 0.95, 0.9, 0.9, 0.9])) == 0.8


@given(CURVES, st.floats(0.01, 1.0))
def test_between_points_accuracy_is_linear_in_log_keep(accuracy: np.ndarray, keep: float) -> None:
    expected = np.interp(math.log(keep), np.log(KEEP), accuracy)
    assert float(pruned_accuracy(SPARSITY, accuracy, keep)) == pytest.approx(expected, abs=1e-6)


@given(CURVES)
def test_at_a_measured_point_accuracy_is_that_of_the_point(accuracy: np.ndarray) -> None:
    assert [float(pruned_accuracy(SPARSITY, accuracy, keep)) for keep in KEEP] == accuracy.tolist()


def test_outside_the_measured_range_accuracy_is_undefined() -> None:
    assert math.isnan(pruned_accuracy(SPARSITY, np.ones(20), 0.009))
    assert math.isnan(pruned_accuracy([0.5, 0.9], [0.5, 0.4], 1.0))
    assert math.isnan(pruned_accuracy([1.0], [0.5], 0.5)), "a fraction of 0 has no logarithm"


FUNCTIONS = {
    "area": pruning_area,
    "holding": holding_sparsity,
    "accuracy": lambda sparsity, accuracy: pruned_accuracy(sparsity, accuracy, 0.07),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
class TestCurves:
    def test_measures_are_batched_over_leading_axes(self, function: object) -> None:
        assert callable(function)
        many = np.random.default_rng(0).uniform(0.1, 1, (3, 2, 20))
        found = function(SPARSITY, many)
        assert found.shape == (3, 2)
        for i, j in np.ndindex(3, 2):
            np.testing.assert_allclose(found[i, j], function(SPARSITY, many[i, j]), rtol=1e-12)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_only_a_curve_with_a_missing_point_is_undefined(self, function: object, bad: float) -> None:
        assert callable(function)
        curves = np.full((2, 20), 0.5)
        curves[0, 7] = bad
        found = function(SPARSITY, curves)
        assert math.isnan(found[0])
        assert math.isfinite(found[1])

    @pytest.mark.parametrize(
        ("sparsity", "accuracy"),
        [
            ([], []),
            ([0, 0.5], [1]),
            ([[0, 0.5]], [[1, 1]]),
            ([0, 1.5], [1, 1]),
            ([0, 0], [1, 1]),
            ([0, math.nan], [1, 1]),
        ],
    )
    def test_invalid_curves_are_refused(self, function: object, sparsity: list[float], accuracy: list[float]) -> None:
        assert callable(function)
        with pytest.raises(ValueError, match=r"expected (distinct )?sparsit"):
            function(sparsity, accuracy)


def test_too_few_points_are_undefined() -> None:
    assert math.isnan(pruning_area([0.0], [0.9]))
    assert math.isnan(holding_sparsity([0.1, 0.5], [0.9, 0.9])), "the dense accuracy is unknown"
    with pytest.raises(ValueError, match="expected share to be above 0"):
        holding_sparsity([0.0], [0.9], share=0)


def test_reading_curves_does_not_need_torch() -> None:
    code = "import sys, optbench.metrics.pruning as p; p.pruning_area([0, 1], [1, 0]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
