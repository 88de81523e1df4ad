"""Similarity measures: worked examples, all-pairs references, and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optbench.metrics import similarity
from optbench.metrics.similarity import (
    class_cosine,
    class_cosine_mean,
    linear_cka,
    pairwise_class_cosine,
    prediction_disagreement,
    subspace_overlap,
)

torch.set_num_threads(1)

TWO_CLASSES = torch.tensor([[1.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([0, 0, 1, 1])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed)).Q


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@st.composite
def classified(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw features (N, d) of at least two classes with positive norms, and their labels."""
    examples, width, classes = draw(st.integers(2, 25)), draw(st.integers(1, 6)), draw(st.integers(2, 4))
    seed = draw(st.integers(0, 10_000))
    labels = torch.randint(classes, (examples,), generator=torch.Generator().manual_seed(seed))
    labels[:2] = torch.tensor([0, 1])
    return normal(examples, width, seed=seed) + 0.5, labels


def test_class_measures_agree_with_a_worked_example() -> None:
    features, labels = TWO_CLASSES
    assert float(class_cosine_mean(features, labels)) == pytest.approx(0.44721, abs=5e-6)
    assert float(pairwise_class_cosine(features, labels)) == pytest.approx(0.35355, abs=5e-6)
    matrix = class_cosine(features, labels)
    expected = torch.tensor([[1, 0.2**0.5], [0.2**0.5, 1]], dtype=torch.float64)
    torch.testing.assert_close(matrix, expected)


def test_every_pair_of_examples_counts_once_for_any_class_sizes() -> None:
    # Classes of 1, 2 and 3 examples have 2 + 3 + 6 = 11 pairs, with cosines 1, 0 and 0. The mean over pairs of classes,
    # as for classes of equal size, would be 1/3.
    features = torch.tensor([[1.0, 0], [2, 0], [3, 0], [0, 1], [0, 2], [0, 3]])
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    assert float(pairwise_class_cosine(features, labels)) == pytest.approx(2 / 11)
    # An example of norm zero belongs to no pair and is not counted.
    padded = torch.cat([features, torch.zeros(4, 2)])
    assert float(pairwise_class_cosine(padded, torch.cat([labels, torch.tensor([0, 1, 2, 3])]))) == pytest.approx(
        2 / 11
    )
    # For classes of equal size it is the mean over pairs of classes of products of mean directions.
    equal = torch.tensor([[1.0, 0], [1, 1], [2, 0], [3, 0], [0, 1], [0, 2]])
    means = {
        c: (equal[2 * c : 2 * c + 2] / equal[2 * c : 2 * c + 2].norm(dim=1, keepdim=True)).mean(0) for c in range(3)
    }
    plain = float(means[0] @ means[1] + means[0] @ means[2] + means[1] @ means[2]) / 3
    assert float(pairwise_class_cosine(equal, torch.tensor([0, 0, 1, 1, 2, 2]))) == pytest.approx(plain)


@settings(deadline=None, max_examples=50)
@given(classified())
def test_class_measures_agree_with_all_pairs(case: tuple[Tensor, Tensor]) -> None:
    features, labels = case
    f, y = features.numpy(), labels.numpy()
    means = {c: f[y == c].mean(0) for c in np.unique(y)}
    matrix = class_cosine(features, labels)
    for a in means:
        for b in means:
            assert float(matrix[a, b]) == pytest.approx(cosine(means[a], means[b]), abs=1e-12)
    between = [cosine(means[a], means[b]) for a in means for b in means if a != b]
    assert float(class_cosine_mean(features, labels)) == pytest.approx(np.mean(between), abs=1e-12)
    pairs = [cosine(f[i], f[j]) for i in range(len(f)) for j in range(len(f)) if y[i] != y[j]]
    assert float(pairwise_class_cosine(features, labels)) == pytest.approx(np.mean(pairs), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(classified(), st.floats(1e-6, 1e6))
def test_class_measures_ignore_scale_rotation_and_order(case: tuple[Tensor, Tensor], scale: float) -> None:
    features, labels = case
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    moved = (scale * features @ orthogonal(features.shape[1]))[order]
    for metric in (class_cosine, class_cosine_mean, pairwise_class_cosine):
        expected = metric(features, labels)
        torch.testing.assert_close(metric(moved, labels[order]), expected, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_examples_of_norm_zero_are_excluded_and_counted() -> None:
    features, labels = TWO_CLASSES
    padded, padded_labels = torch.cat([features, torch.zeros(3, 2)]), torch.cat([labels, torch.tensor([0, 1, 1])])
    for metric in (class_cosine, class_cosine_mean, pairwise_class_cosine):
        torch.testing.assert_close(metric(padded, padded_labels), metric(features, labels))
    assert similarity.note(padded, padded_labels) == "3 of 7 examples have zero norm and are left out"
    assert similarity.note(features, labels) is None


def test_a_class_without_direction_is_nan_and_excluded_from_the_mean() -> None:
    features, labels = TWO_CLASSES
    cancelling = torch.tensor([[0.1, 0.2], [0.2, 0.4], [-0.3, -0.6]], dtype=torch.float64)
    features = torch.cat([features.double(), cancelling])
    labels = torch.cat([labels, torch.full((3,), 2)])
    assert cancelling.mean(0).any(), "the mean cancels only up to rounding"
    matrix = class_cosine(features, labels, classes=4)
    assert matrix.shape == (4, 4)
    assert matrix[2:].isnan().all()
    assert matrix[:, 2:].isnan().all()
    assert float(class_cosine_mean(features, labels, classes=4)) == pytest.approx(0.2**0.5)
    assert similarity.note(features, labels) == "1 of 3 classes have no mean direction and are left out of class means"


@pytest.mark.parametrize("examples", [0, 3])
def test_one_class_or_none_is_nan(examples: int) -> None:
    features, labels = torch.ones(examples, 2), torch.zeros(examples, dtype=torch.int64)
    assert class_cosine_mean(features, labels).isnan()
    assert pairwise_class_cosine(features, labels).isnan()
    assert similarity.note(features, labels) == f"expected at least 2 classes, got {min(examples, 1)}"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_features_make_only_their_member_nan(bad: float) -> None:
    features, labels = TWO_CLASSES
    stacked = torch.stack([features, features])
    stacked[0, 1, 1] = bad
    for metric in (class_cosine_mean, pairwise_class_cosine):
        values = metric(stacked, labels)
        assert values[0].isnan()
        torch.testing.assert_close(values[1], metric(features, labels))
    assert class_cosine(stacked, labels)[0].isnan().all()
    assert similarity.note(stacked[0], labels) == "the features are not finite"


def test_class_measures_of_stacked_members_equal_single_members() -> None:
    features = normal(2, 3, 20, 5)
    labels = torch.randint(4, (2, 3, 20), generator=torch.Generator().manual_seed(0))
    for metric in (class_cosine, class_cosine_mean, pairwise_class_cosine):
        own, shared = metric(features, labels, 4), metric(features, labels[0, 0], 4)
        for index in np.ndindex(2, 3):
            torch.testing.assert_close(own[index], metric(features[index], labels[index], 4), equal_nan=True)
            torch.testing.assert_close(shared[index], metric(features[index], labels[0, 0], 4), equal_nan=True)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (torch.tensor([0, 1, 2]), None, r"labels \(N,\) or"),
        (torch.tensor([0.0, 1, 2, 3]), None, "labels: expected integers"),
        (torch.tensor([0, 1, 2, 3]), 3, r"expected 0\.\.2, got 0\.\.3"),
        (torch.tensor([0, 1, -1, 0]), None, r"got -1\.\.1"),
    ],
)
def test_wrong_labels_are_refused(labels: Tensor, classes: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_cosine(TWO_CLASSES[0], labels, classes)


def test_cka_agrees_with_worked_examples() -> None:
    x = torch.arange(5.0)[:, None]
    assert float(linear_cka(x, x**2)) == pytest.approx(0.91954, abs=5e-6)
    assert float(linear_cka(x, x**2, debiased=True)) == pytest.approx(0.96236, abs=5e-6)
    axes = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert float(linear_cka(axes, axes[:, :1])) == pytest.approx(2**-0.5)


def hsic_cka(x: Tensor, y: Tensor, debiased: bool) -> float:
    """Compute CKA from Gram matrices: trace(KHLH), or the unbiased estimator of Song et al. 2012, equation 5."""
    n = len(x)
    centring = np.eye(n) - 1 / n

    def hsic(a: Tensor, b: Tensor) -> float:
        k, m = (a @ a.T).numpy(), (b @ b.T).numpy()
        if not debiased:
            return float(np.trace(k @ centring @ m @ centring))
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        one = np.ones(n)
        inner = (
            np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
        )
        return float(inner / (n * (n - 3)))

    own = hsic(x, x), hsic(y, y)
    return hsic(x, y) / math.sqrt(own[0] * own[1]) if min(own) > 1e-9 else math.nan


@settings(deadline=None, max_examples=50)
@given(st.integers(4, 20), st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 10_000))
def test_cka_agrees_with_gram_matrices(n: int, p: int, q: int, debiased: bool, seed: int) -> None:
    x = normal(n, p, seed=seed) + 1.0
    y = normal(n, q, seed=seed + 1) + x[:, :1]
    expected = hsic_cka(x, y, debiased)
    if not math.isnan(expected):
        assert float(linear_cka(x, y, debiased=debiased)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.booleans(), st.floats(1e-3, 1e3), st.integers(0, 10_000))
def test_cka_is_invariant_to_orthogonal_maps_scaling_shifts_and_order_of_arguments(
    debiased: bool, scale: float, seed: int
) -> None:
    x, y = normal(25, 4, seed=seed), normal(25, 3, seed=seed + 1)
    value = float(linear_cka(x, y, debiased=debiased))
    moved = float(linear_cka(scale * x @ orthogonal(4) + 2.0, y, debiased=debiased))
    assert moved == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert float(linear_cka(y, x, debiased=debiased)) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert float(linear_cka(x, scale * x @ orthogonal(4), debiased=debiased)) == pytest.approx(1.0)
    if not debiased:
        assert 0 <= value <= 1


def test_debiasing_removes_the_similarity_of_unrelated_features() -> None:
    """For independent features with d > N, plain CKA is close to 1 and the unbiased form close to 0."""
    values = [
        [float(linear_cka(normal(30, 100, seed=2 * s), normal(30, 100, seed=2 * s + 1), debiased=d)) for s in range(20)]
        for d in (False, True)
    ]
    assert np.mean(values[0]) > 0.7
    assert abs(np.mean(values[1])) < 0.05


def test_cka_is_nan_where_undefined() -> None:
    varied, constant = normal(10, 2), torch.full((10, 2), 0.1, dtype=torch.float64)
    broken = varied.clone()
    broken[3, 0] = math.inf
    for debiased in (False, True):
        assert linear_cka(varied, constant, debiased=debiased).isnan()
        assert linear_cka(broken, varied, debiased=debiased).isnan()
        assert linear_cka(varied[:1], varied[:1], debiased=debiased).isnan()
        assert linear_cka(varied[:0], varied[:0], debiased=debiased).isnan()
    assert linear_cka(varied[:3], varied[:3], debiased=True).isnan()
    assert float(linear_cka(varied[:3], varied[:3])) == pytest.approx(1.0)


def test_cka_of_stacked_members_equals_single_members() -> None:
    x, y = normal(3, 12, 4), normal(3, 12, 20, seed=1)
    for debiased in (False, True):
        together = linear_cka(x, y, debiased=debiased)
        alone = torch.stack([linear_cka(a, b, debiased=debiased) for a, b in zip(x, y, strict=True)])
        torch.testing.assert_close(together, alone)


def test_cka_refuses_different_numbers_of_examples() -> None:
    with pytest.raises(ValueError, match="same number of examples, got 5 and 6"):
        linear_cka(normal(5, 2), normal(6, 2))


def test_subspace_overlap_agrees_with_a_worked_example() -> None:
    e = torch.eye(3)
    assert float(subspace_overlap(e[:2], e[1:], 2)) == pytest.approx(0.5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_overlap_agrees_with_principal_angles(k: int, seed: int) -> None:
    x, y = normal(20, 6, seed=seed), normal(9, 6, seed=seed + 1)
    u, v = (np.linalg.svd(z.numpy())[2][:k].T for z in (x, y))
    expected = np.square(np.linalg.svd(u.T @ v, compute_uv=False)).sum() / k
    value = float(subspace_overlap(x, y, k))
    assert value == pytest.approx(expected, abs=1e-9)
    turn = orthogonal(6)
    assert float(subspace_overlap(3 * x @ turn, y @ turn, k)) == pytest.approx(value, abs=1e-9)
    assert float(subspace_overlap(x, -x, k)) == pytest.approx(1.0)
    assert float(subspace_overlap(x, y, 6)) == pytest.approx(1.0), "both are bases of the whole space"


def test_overlap_of_random_subspaces_is_chance() -> None:
    value = subspace_overlap(normal(400, 30, 10), normal(400, 30, 10, seed=1), 3).mean()
    assert float(value) == pytest.approx(0.3, abs=0.02)


def test_overlap_is_nan_where_the_directions_are_undetermined() -> None:
    e = torch.eye(3, dtype=torch.float64)
    x = normal(8, 3)
    assert subspace_overlap(e, x, 2).isnan(), "σ₂ = σ₃"
    assert subspace_overlap(x, e[:1], 2).isnan(), "there is one example"
    assert subspace_overlap(x[:, :1] * e[0] + 0 * x, x, 2).isnan(), "features have rank 1"
    broken = torch.stack([x, x])
    broken[0, 0, 0] = math.nan
    values = subspace_overlap(broken, x, 1)
    assert values[0].isnan()
    assert float(values[1]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("width", "k", "message"), [(3, 0, "1 ≤ k ≤ d = 3, got 0"), (3, 4, "got 4"), (2, 1, "same width")]
)
def test_overlap_refuses_invalid_sizes(width: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subspace_overlap(normal(5, 3), normal(5, width), k)


def test_disagreement_is_the_share_of_examples_with_other_predictions() -> None:
    a, b = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]]), torch.tensor([0, 1, 3, 2])
    assert prediction_disagreement(a, b).tolist() == [0.5, 0.75]
    assert prediction_disagreement(b, a).tolist() == [0.5, 0.75]
    assert float(prediction_disagreement(b, b)) == 0
    assert prediction_disagreement(a[:, :0], a[:, :0]).isnan().all()


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.tensor([0, 1]), torch.tensor([0, 1, 2]), "the same number of examples"),
        (torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), "labels: expected integers"),
    ],
)
def test_disagreement_refuses_invalid_input(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prediction_disagreement(a, b)


def test_sums_over_parts_equal_those_over_all_examples() -> None:
    """Covers parts with different classes, a row of norm zero, and an empty part."""
    draws = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 4, generator=draws).relu() for n in (30, 7, 0, 50)]
    labels = [torch.arange(len(part)) % count for part, count in zip(parts, (3, 1, 1, 5), strict=True)]
    parts[0][2] = 0
    made = similarity.pooled_sums([similarity.class_sums(f, y) for f, y in zip(parts, labels, strict=True)])
    f, y = torch.cat(parts), torch.cat(labels)
    torch.testing.assert_close(class_cosine(made), class_cosine(f, y), rtol=1e-12, atol=0)
    torch.testing.assert_close(class_cosine_mean(made), class_cosine_mean(f, y), rtol=1e-12, atol=0)
    torch.testing.assert_close(pairwise_class_cosine(made), pairwise_class_cosine(f, y), rtol=1e-12, atol=0)
    assert similarity.note(made) == similarity.note(f, y)
    with pytest.raises(TypeError, match="expected features with labels"):
        class_cosine(f)
