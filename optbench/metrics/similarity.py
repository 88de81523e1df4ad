"""Similarity between the features of different classes, and between two solutions.

Legend: `N` examples; `d`, `p`, `q` widths of features; `C` classes; `...` any leading axes (members).

Everything is computed and returned in float64. A value is NaN if it is undefined or its input is not finite. Metrics
of classes use uncentred features, as in Figure 4 of Pascanu et al. 2025, arXiv:2507.12224. Examples without a direction
(norm zero) are left out and counted in `note`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums over labelled features (..., N, d), in float64, used by metrics of classes.

    sums: (..., C, d) the sum of the features of each class.
    scale: (..., C) the sum of the norms of the features of each class.
    directions: (..., C, d) the sum of the normalised features of each class, without features of norm zero.
    counts: (..., C) the number of examples in each class.
    directed: (..., C) the number of examples in each class with a non-zero norm.
    examples: N.
    """

    sums: Tensor
    scale: Tensor
    directions: Tensor
    counts: Tensor
    directed: Tensor
    examples: int


def class_sums(features: Tensor, labels: Tensor, classes: int | None = None) -> ClassSums:
    """Compute the sums over features that all metrics of classes share.

    features: (..., N, d). labels: integers, (N,) or (..., N). classes: C; None: the largest label plus one.

    Raises:
        ValueError: shapes disagree, or a label is not in 0..C-1.
    """
    values, member = _by_class(features, labels, classes)
    norms = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    # Dividing the N×C memberships instead of the N×d features avoids a copy of the features.
    member = member.expand(*values.shape[:-1], member.shape[-1])
    weights = torch.cat([member, torch.where(norms > 0, member / norms, 0.0)], dim=-1)
    sums, directions = (weights.mT @ values).chunk(2, dim=-2)
    directed = (member * (norms > 0)).sum(-2)
    scale = (member * norms).sum(-2)
    # An example whose norm overflows has no direction, but dividing by its norm would give zero.
    directions = torch.where(norms.isfinite().all(-2, keepdim=True), directions, torch.nan)
    return ClassSums(sums, scale, directions, member.sum(-2), directed, values.shape[-2])


def pooled_sums(parts: Sequence[ClassSums]) -> ClassSums:
    """Add the sums over the examples of all `parts`. Widths must agree; numbers of classes can differ."""
    count = max(part.counts.shape[-1] for part in parts)

    def total(name: str, axes_after: int) -> Tensor:
        found = [getattr(part, name) for part in parts]
        after = [0, 0] * axes_after
        padded = [torch.nn.functional.pad(one, [*after, 0, count - one.shape[-1 - axes_after]]) for one in found]
        return torch.stack(padded).sum(0)

    return ClassSums(
        total("sums", 1),
        total("scale", 0),
        total("directions", 1),
        total("counts", 0),
        total("directed", 0),
        sum(part.examples for part in parts),
    )


def class_cosine(features: Tensor | ClassSums, labels: Tensor | None = None, classes: int | None = None) -> Tensor:
    """Return the cosines between class means of the features: entry (a, b) = ⟨μ_a, μ_b⟩ / (‖μ_a‖ ‖μ_b‖).

    Pass either the arguments of `class_sums` or its result alone. The result has shape (..., C, C), with NaN in
    the row and column of a class that has no examples or a zero mean. Raises ValueError as `class_sums` does.
    """
    known = _class_sums(features, labels, classes)
    norms = torch.linalg.vector_norm(known.sums, dim=-1, keepdim=True)
    # A mean that cancels to rounding errors has no direction.
    directed = norms > _EPS * known.examples * known.scale[..., None]
    directions = torch.where(directed, known.sums / norms, torch.nan)
    return (directions @ directions.mT).clamp(-1.0, 1.0)


def class_cosine_mean(features: Tensor | ClassSums, labels: Tensor | None = None, classes: int | None = None) -> Tensor:
    """Return the off-diagonal mean of `class_cosine` over the classes that have examples and a non-zero mean.

    The arguments are those of `class_cosine`. The result has shape (...); NaN if there are fewer than two such classes.

    Example:
        >>> features, labels = torch.tensor([[1.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([0, 0, 1, 1])
        >>> round(class_cosine_mean(features, labels).item(), 3)
        0.447
    """
    cosines = class_cosine(features, labels, classes)
    apart = ~torch.eye(cosines.shape[-1], dtype=torch.bool, device=cosines.device)
    return torch.where(apart, cosines, torch.nan).flatten(-2).nanmean(-1)


def pairwise_class_cosine(
    features: Tensor | ClassSums, labels: Tensor | None = None, classes: int | None = None
) -> Tensor:
    """Return the mean cosine over pairs of examples of different classes, counting every pair once.

        Σ_{c<c′} n_c n_c′ ⟨m_c, m_c′⟩ / Σ_{c<c′} n_c n_c′

    n_c is the number of examples of class c, and m_c the mean of their unit-normalised features. Pairs of classes are
    weighted by the product of the class sizes; for classes of equal size, the result is the plain mean of ⟨m_c, m_c′⟩.
    Examples of norm zero are excluded.

    The arguments are those of `class_cosine`. The result has shape (...); NaN if fewer than two classes have examples
    of non-zero norm.

    Example:
        >>> features, labels = torch.tensor([[1.0, 0], [1, 0], [1, 1], [0, 1]]), torch.tensor([0, 0, 1, 1])
        >>> round(pairwise_class_cosine(features, labels).item(), 3)
        0.354
    """
    known = _class_sums(features, labels, classes)
    sums, counts = known.directions, known.directed[..., None]
    apart = 1.0 - torch.eye(sums.shape[-2], dtype=sums.dtype, device=sums.device)
    # Both sums count every pair twice, as (c, c′) and as (c′, c).
    total = (sums @ sums.mT * apart).sum((-2, -1))
    pairs = (counts @ counts.mT * apart).sum((-2, -1))
    return torch.where(pairs > 0, total / pairs, torch.nan)


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    """Return the linear centred kernel alignment ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F), with centred columns.

    Source: Kornblith et al. 2019, arXiv:1905.00414. x (..., N, p) and y (..., N, q), for the same examples in the same
    order -> (...). NaN if x or y does not vary, or if an unbiased estimate of a self-similarity is not positive.

    debiased: use unbiased estimates of the three terms (Song et al. 2012; N ≥ 4), so that values from different numbers
    of examples are comparable; the result can then be negative.

    Raises:
        ValueError: x and y differ in N.

    Example:
        >>> x = torch.arange(5.0)[:, None]
        >>> round(linear_cka(x, x.square()).item(), 3)
        0.92
    """
    a, b = centred(x), centred(y)
    examples = a.shape[-2]
    if b.shape[-2] != examples:
        raise ValueError(f"expected x and y with the same number of examples, got {examples} and {b.shape[-2]}")
    if debiased and examples < 4:
        return alignment(a, b, False) * torch.nan
    cross = alignment(a, b, debiased)
    self_a, self_b = alignment(a, a, debiased), alignment(b, b, debiased)
    defined = (self_a > 0) & (self_b > 0)
    return torch.where(defined, cross / (self_a.sqrt() * self_b.sqrt()), torch.nan)


def subspace_overlap(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Return ‖U_kᵀ V_k‖²_F / k, with U_k and V_k the k leading right singular vectors of x and of y.

    The overlap is 1 if the two subspaces of ℝᵈ are equal, and 0 if they are orthogonal. Report it together with k / d,
    the mean for random subspaces. x and y are not centred; centre them first to compare principal components.

    x (..., N, d), y (..., N′, d) -> (...). NaN if the k leading directions of x or y are undefined, because its rank
    is below k or σ_k = σ_{k+1}.

    Raises:
        ValueError: x and y differ in width, or k is not in 1..d.
    """
    width = x.shape[-1]
    if y.shape[-1] != width:
        raise ValueError(f"expected x and y with the same width, got {width} and {y.shape[-1]}")
    if not 1 <= k <= width:
        raise ValueError(f"k: expected 1 ≤ k ≤ d = {width}, got {k}")
    overlap = (leading_directions(x, k) @ leading_directions(y, k).mT).square().sum((-2, -1)) / k
    return overlap.clamp(max=1.0)


def prediction_disagreement(a: Tensor, b: Tensor) -> Tensor:
    """Return the share of examples that two solutions label differently.

    Interpret the share relative to its null, the value for the same optimizer and initial weights with another data
    order. a, b: predicted labels, integers (..., N) -> (...); NaN for N = 0.

    Raises:
        ValueError: the labels are not integers, or a and b differ in N.
    """
    for labels in (a, b):
        _check_integer(labels)
    if a.shape[-1:] != b.shape[-1:]:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"expected a and b with the same number of examples, got shapes {got}")
    return (a != b).double().mean(-1)


def note(features: Tensor | ClassSums, labels: Tensor | None = None) -> str | None:
    """Return why metrics of classes are NaN for one N×d matrix, or how many rows or classes are left out, else None."""
    known = _class_sums(features, labels, None)
    assert known.counts.ndim == 1, "expected one matrix without leading axes"
    if not known.scale.isfinite().all():
        return "the features are not finite"
    present = int((known.counts > 0).sum())
    if present < 2:
        return f"expected at least 2 classes, got {present}"
    directed = int(class_cosine(known).diagonal().isfinite().sum())
    zeros = int((known.counts - known.directed).sum())
    remarks = []
    if zeros:
        remarks.append(f"{zeros} of {known.examples} examples have zero norm and are left out")
    if directed < present:
        remarks.append(
            f"{present - directed} of {present} classes have no mean direction and are left out of class means"
        )
    return "; ".join(remarks) or None


def _class_sums(features: Tensor | ClassSums, labels: Tensor | None, classes: int | None) -> ClassSums:
    if isinstance(features, ClassSums):
        return features
    if labels is None:
        raise TypeError("expected features with labels, or class sums, got features without labels")
    return class_sums(features, labels, classes)


def _by_class(features: Tensor, labels: Tensor, classes: int | None) -> tuple[Tensor, Tensor]:
    """Return features (..., N, d) and class memberships (..., N, C), as zeros and ones, both in float64."""
    _check_integer(labels)
    if features.ndim < 2 or labels.shape[-1:] != features.shape[-2:-1]:
        raise ValueError(
            "expected features (..., N, d) and labels (N,) or (..., N), got shapes "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    labels = labels.to(features.device, torch.int64)
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, -1)
    count = high + 1 if classes is None else classes
    if low < 0 or high >= count:
        raise ValueError(f"labels: expected 0..{count - 1}, got {low}..{high}")
    member = labels[..., None] == torch.arange(count, device=labels.device)
    return features.detach().double(), member.double()


def _check_integer(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.ndim < 1:
        raise ValueError(f"labels: expected integers of shape (..., N), got {labels.dtype} {tuple(labels.shape)}")


def centred(features: Tensor) -> Tensor:
    """Return the features minus their mean over examples, in float64: (..., N, d) -> (..., N, d)."""
    if features.ndim < 2:
        raise ValueError(f"expected features (..., N, d), got shape {tuple(features.shape)}")
    values = features.detach().double()
    # The first example is subtracted before the mean, so that a constant column becomes exactly zero.
    shifted = values - values[..., :1, :]
    return shifted - shifted.mean(-2, keepdim=True)


def alignment(a: Tensor, b: Tensor, debiased: bool) -> Tensor:
    """Return ‖BᵀA‖²_F, where A = a (..., N, p) and B = b (..., N, q) are `centred`.

    debiased: return an unbiased estimate instead, up to a factor that cancels in CKA.
    """
    examples = a.shape[-2]
    # Both give the same result; the smaller of the p×q and N×N products is computed.
    if a.shape[-1] * b.shape[-1] <= examples**2:
        plain = (a.mT @ b).square().sum((-2, -1))
    else:
        plain = ((a @ a.mT) * (b @ b.mT)).sum((-2, -1))
    if not debiased:
        return plain
    # The bias comes from the diagonals of the two Gram matrices, the squared norms of the rows.
    rows_a, rows_b = a.square().sum(-1), b.square().sum(-1)
    n = float(examples)
    return plain - n / (n - 2) * (rows_a * rows_b).sum(-1) + rows_a.sum(-1) * rows_b.sum(-1) / ((n - 1) * (n - 2))


def leading_directions(x: Tensor, k: int) -> Tensor:
    """Return the k leading right singular vectors as rows: (..., N, d) -> (..., k, d); NaN if undetermined."""
    if x.ndim < 2:
        raise ValueError(f"expected x and y of shape (..., N, d), got {tuple(x.shape)}")
    values = x.detach().double()
    if values.shape[-2] < k:
        return values.new_full((*values.shape[:-2], k, values.shape[-1]), torch.nan)
    finite = values.isfinite().all(-1).all(-1)
    values = torch.where(finite[..., None, None], values, 0.0)
    triangle: Tensor = torch.linalg.qr(values, mode="r").R
    _, sigma, directions = torch.linalg.svd(triangle, full_matrices=False)
    following = torch.nn.functional.pad(sigma, (0, 1))[..., k]
    # With k = d no gap is needed after the last direction: the subspace is all of ℝᵈ if the rank is d.
    gap = sigma[..., k - 1] - following
    determined = finite & (gap > _EPS * max(values.shape[-2:]) * sigma[..., 0])
    return torch.where(determined[..., None, None], directions[..., :k, :], torch.nan)
