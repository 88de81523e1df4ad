"""The geometry of updates: worked examples, plain decompositions, and invariances."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench.metrics.updates import Geometry, geometry

torch.set_num_threads(1)

W, G = torch.eye(2), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
POLAR = torch.linalg.svd(G).U @ torch.linalg.svd(G).Vh


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def plainly(w: Tensor, g: Tensor, d: Tensor) -> Geometry:
    """Compute the geometry by singular value decompositions and the inverse cosine."""
    w_, g_, d_ = (tensor.flatten(1).numpy() for tensor in (w, g, d))
    u, s, v = np.linalg.svd(g_, full_matrices=False)
    polar = u[:, s > 1e-7 * s[0]] @ v[s > 1e-7 * s[0]]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))

    size = np.linalg.norm(d_)
    return Geometry(
        float(size**2 / np.linalg.svd(d_, compute_uv=False)[0] ** 2),
        cosine(d_, -g_),
        cosine(d_, -np.sign(g_)),
        cosine(d_, -polar),
        float(size / np.linalg.norm(w_)),
        math.degrees(math.acos(cosine(w_, w_ + d_))),
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (-0.1 * G, (1.14590, 1, 0.94281, 0.91287, 0.17321, 5.81753)),
        (-0.1 * G.sign(), (1.14590, 0.94281, 1, 0.90370, 0.12247, 4.49235)),
        (-0.1 * POLAR, (2, 0.91287, 0.90370, 1, 0.1, 2.00094)),
    ],
    ids=["gradient", "sign", "polar"],
)
def test_geometry_agrees_with_worked_examples(step: Tensor, expected: tuple[float, ...]) -> None:
    assert astuple(geometry(W, G, step)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (8, 8), (1, 5), (5, 1), (4, 3, 2, 2)])
def test_geometry_agrees_with_plain_decompositions(shape: tuple[int, ...]) -> None:
    w, g, d = (normal(*shape, seed=seed) for seed in range(3))
    assert astuple(geometry(w, g, d)) == pytest.approx(astuple(plainly(w, g, d)), abs=1e-9)


def test_the_polar_factor_of_a_low_rank_gradient_has_no_other_directions() -> None:
    w, d = normal(20, 30, seed=1), normal(20, 30, seed=2)
    g = normal(20, 3, seed=3) @ torch.diag(torch.tensor([1, 1e-3, 1e-6], dtype=torch.float64)) @ normal(3, 30, seed=4)
    single = g.float()
    for found in (g, g + 1e-12 * normal(20, 30, seed=5)):
        assert geometry(w, found, d).cosine_polar == pytest.approx(plainly(w, g, d).cosine_polar, abs=1e-6)
    assert geometry(w, single, d).cosine_polar == pytest.approx(plainly(w, single.double(), d).cosine_polar, abs=1e-6)


def test_rotating_both_sides_changes_only_the_cosine_with_the_sign() -> None:
    w, g, d = (normal(6, 9, seed=seed) for seed in range(3))
    u, v = orthogonal(6, 3), orthogonal(9, 4)
    there, here = geometry(w, g, d), geometry(*(u @ tensor @ v for tensor in (w, g, d)))
    assert astuple(replace(here, cosine_sign=there.cosine_sign)) == pytest.approx(astuple(there), abs=1e-9)
    assert here.cosine_sign != pytest.approx(there.cosine_sign, abs=1e-3)


def test_the_transpose_has_the_same_geometry_and_scaling_changes_only_size_and_angle() -> None:
    w, g, d = (normal(6, 9, seed=seed) for seed in range(3))
    there = geometry(w, g, d)
    assert astuple(geometry(w.T, g.T, d.T)) == pytest.approx(astuple(there), abs=1e-12)
    smaller = geometry(w, 3 * g, d / 1e6)
    assert astuple(smaller)[:4] == pytest.approx(astuple(there)[:4], abs=1e-9)
    assert smaller.relative_size == pytest.approx(there.relative_size / 1e6)
    across = d - w * (d * w).sum() / w.norm() ** 2
    assert smaller.angle == pytest.approx(math.degrees(float(across.norm() / w.norm())) / 1e6, rel=1e-4)


def test_undefined_values_are_nan() -> None:
    still = geometry(W, G, torch.zeros(2, 2))
    assert (still.relative_size, still.angle) == (0, 0)
    assert all(map(math.isnan, astuple(still)[:4]))
    flat = geometry(W, torch.zeros(2, 2), G)
    assert all(map(math.isnan, (flat.cosine_gradient, flat.cosine_sign, flat.cosine_polar)))
    assert flat.stable_rank == pytest.approx(1.14590, abs=1e-5)
    assert math.isnan(geometry(torch.zeros(2, 2), G, G).relative_size)
    assert all(map(math.isnan, astuple(geometry(W, G / 0, G))))
    with pytest.raises(
        ValueError, match=r"expected three tensors with the same shape and two or more axes, got \(2,\)"
    ):
        geometry(W[0], G[0], G[0])
