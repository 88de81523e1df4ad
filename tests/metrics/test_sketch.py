"""Count sketches are linear, unbiased, and have the theoretical variance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optbench.metrics.sketch import BUCKETS, CountSketch
from optbench.streams import generator

CPU = torch.device("cpu")


def drawn(count: int, seed: int = 0, buckets: int = BUCKETS) -> CountSketch:
    return CountSketch.draw(count, torch.Generator().manual_seed(seed), CPU, buckets)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_matrix(sketch: CountSketch, count: int) -> Tensor:
    """Return the sketch as a matrix (K, P), built column by column."""
    return torch.stack([sketch(unit) for unit in torch.eye(count)], dim=1).double()


seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(seeds, st.integers(1, 300), st.integers(1, 64))
def test_a_sketch_sums_signed_weights_by_bucket(seed: int, count: int, buckets: int) -> None:
    sketch = drawn(count, seed, buckets)
    matrix = as_matrix(sketch, count)
    assert matrix.shape == (buckets, count)
    assert torch.equal(matrix.abs().sum(0), torch.ones(count, dtype=torch.float64))
    assert set(matrix.unique().tolist()) <= {-1.0, 0.0, 1.0}
    weights = normal(count, seed=seed)
    torch.testing.assert_close(sketch(weights).double(), matrix @ weights, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seeds, st.floats(-10, 10), st.floats(-10, 10))
def test_a_sketch_is_linear(seed: int, a: float, b: float) -> None:
    sketch, x, y = drawn(500, seed), normal(500, seed=seed), normal(500, seed=seed + 1)
    torch.testing.assert_close(sketch(a * x + b * y), a * sketch(x) + b * sketch(y), rtol=1e-4, atol=1e-4)
    assert torch.equal(sketch(-x), -sketch(x))
    assert not sketch(torch.zeros(500)).any()


@pytest.mark.parametrize("weights", [normal(40), torch.tensor([1.0] * 40), torch.tensor([5.0, 1.0] * 20)])
def test_squared_norms_are_unbiased_with_the_published_variance(weights: Tensor) -> None:
    buckets, draws = 16, 4000
    random = torch.Generator().manual_seed(1)
    found = torch.stack(
        [CountSketch.draw(40, random, CPU, buckets)(weights).double().square().sum() for _ in range(draws)]
    )
    square = weights.double().square()
    variance = 2 / buckets * (square.sum() ** 2 - (square**2).sum())
    assert variance < 2 / buckets * square.sum() ** 2
    assert abs(found.mean() - square.sum()) < 4 * math.sqrt(variance / draws)
    assert found.var().item() == pytest.approx(variance.item(), rel=0.2)


def test_a_single_weight_is_exact() -> None:
    assert all(abs(drawn(1, seed)(torch.tensor([3.0])).sum().item()) == 3.0 for seed in range(20))


@pytest.mark.parametrize("apart", [1.0, 1e-4])
def test_distances_are_accurate_to_about_two_percent(apart: float) -> None:
    """Small distances between large weights too: the error is relative to the distance, not to the weights."""
    errors = []
    for seed in range(100):
        sketch = drawn(20_000, seed)
        a = normal(20_000, seed=seed).float()
        b = a + apart * normal(20_000, seed=1000 + seed).float()
        exact = (a.double() - b.double()).norm()
        errors.append(((sketch(a).double() - sketch(b).double()).norm() / exact - 1).item())
    rms = math.sqrt(sum(error**2 for error in errors) / len(errors))
    assert rms == pytest.approx(1 / math.sqrt(2 * BUCKETS), rel=0.3)
    assert abs(sum(errors) / len(errors)) < 4 * rms / math.sqrt(len(errors))
    assert max(map(abs, errors)) < 0.1


def test_the_sketch_depends_only_on_the_generator() -> None:
    weights = normal(3000).float()
    first, again = (CountSketch.draw(3000, generator(7, 0, "sketch of 3000 weights"), CPU) for _ in range(2))
    other = CountSketch.draw(3000, generator(8, 0, "sketch of 3000 weights"), CPU)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(first(weights), again(weights))
    assert not torch.equal(first(weights), other(weights))
    assert torch.equal(torch.get_rng_state(), state)


def test_sums_are_float64_and_results_float32_for_any_input() -> None:
    sketch, weights = drawn(5000), normal(5000).float().requires_grad_()
    found = sketch(weights)
    assert (found.dtype, found.shape, found.requires_grad) == (torch.float32, (BUCKETS,), False)
    assert torch.equal(found, sketch(weights.double()))
    # A float32 sum would lose the small value.
    one_bucket = drawn(3, buckets=1)
    signs = as_matrix(one_bucket, 3)[0]
    assert one_bucket(signs * torch.tensor([1e8, 1.0, -1e8])).item() == 1.0


@pytest.mark.first(4)
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_same_weights_have_the_same_sketch() -> None:
    weights = normal(300_000).float()
    there = CountSketch.draw(300_000, torch.Generator().manual_seed(0), torch.device("cuda"))
    found = [there(weights.cuda()) for _ in range(50)]
    assert all(torch.equal(found[0], other) for other in found)
    torch.testing.assert_close(found[0].cpu(), drawn(300_000)(weights))
