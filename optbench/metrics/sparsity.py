"""Sparsity: how unevenly weights are distributed, and how many activations and units are inactive.

Legend: `n` weights; `N` examples; `d` units; `...` any leading axes (members).

Metrics of weights take (..., n), one vector per leading index. Metrics of activations take (..., N, d). All metrics are
computed in float64 and return (...). A value is NaN if it is undefined or its input is not finite; `note` and
`activation_note` say why. Weights exclude biases and the gains of normalisation layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor


def hoyer(weights: Tensor) -> Tensor:
    """Return (√n - ‖w‖₁ / ‖w‖₂) / (√n - 1): 0 for equal magnitudes, 1 for a single non-zero weight (Hoyer 2004).

    weights (..., n) -> (...); NaN for a zero vector and for n < 2.

    Example:
        >>> round(hoyer(torch.tensor([0.0, 0, 3, 4])).item(), 3)
        0.6
    """
    sizes = _relative(weights).abs()
    if sizes.shape[-1] < 2:
        return _undefined(sizes)
    root = math.sqrt(sizes.shape[-1])
    ratio: Tensor = sizes.sum(-1) / torch.linalg.vector_norm(sizes, dim=-1)
    return (root - ratio) / (root - 1.0)


def gini(weights: Tensor) -> Tensor:
    """Return the Gini index of the magnitudes, 1 - 2 Σ_k (|w|_(k) / ‖w‖₁) (n - k + ½) / n with |w|_(1) ≤ ... ≤ |w|_(n).

    It is 0 for equal magnitudes, and 1 - 1/n for a single non-zero weight (Hurley & Rickard 2009).
    weights (..., n) -> (...); NaN for a zero vector and for n = 0.

    Example:
        >>> round(gini(torch.tensor([0.0, 0, 3, 4])).item(), 3)  # 15 / 28
        0.536
    """
    sizes = _ascending(_relative(weights).abs())
    count = sizes.shape[-1]
    if count == 0:
        return _undefined(sizes)
    above = (count - torch.arange(1, count + 1, dtype=sizes.dtype, device=sizes.device) + 0.5) / count
    return 1.0 - 2.0 * (sizes * above).sum(-1) / sizes.sum(-1)


def kurtosis(weights: Tensor) -> Tensor:
    """Return the kurtosis (3 for a normal distribution): the fourth central moment divided by the squared second.

    weights (..., n) -> (...), at least 1; NaN where the weights do not vary and for n = 0.

    Example:
        >>> kurtosis(torch.tensor([1.0, -1, 1, -1])).item()
        1.0
    """
    values = _relative(weights)
    if values.shape[-1] == 0:
        return _undefined(values)
    # The first weight is subtracted before the mean, so that constant weights have a variance of exactly zero.
    shifted = values - values[..., :1]
    squares = (shifted - shifted.mean(-1, keepdim=True)).square()
    return squares.square().mean(-1) / squares.mean(-1).square()


def zero_share(weights: Tensor) -> Tensor:
    """Return the share of weights that are exactly zero. weights (..., n) -> (...); NaN for n = 0."""
    values = weights.detach().double()
    return torch.where(values.isfinite().all(-1), (values == 0).double().mean(-1), torch.nan)


def near_zero_share(weights: Tensor, relative: Annotated[float, Field(gt=0)] = 0.01) -> Tensor:
    """Return the share of weights with |w| < relative · rms(w), with the rms over a single layer.

    weights (..., n) of one layer -> (...); NaN for a zero vector, whose rms gives no scale, and for n = 0.
    For several layers, use the mean of the layers' shares, weighted by n, so that every share is relative to the rms of
    its own layer.
    """
    values = _relative(weights)
    scale = values.square().mean(-1, keepdim=True).sqrt()
    near = (values.abs() < relative * scale).double().mean(-1)
    return torch.where(scale[..., 0] > 0, near, torch.nan)


@dataclass(frozen=True, eq=False)
class Activity:
    """Sums over activations (..., N, d) shared by all metrics of activations, in float64.

    total: (..., d) Σ|h_i| of every unit over the examples.
    zeros: (...) the number of activations that are exactly zero.
    examples: N.
    """

    total: Tensor
    zeros: Tensor
    examples: int

    @cached_property
    def means(self) -> Tensor:
        """(..., d) mean|h_i| of every unit over the examples; NaN for N = 0."""
        return self.total / self.examples


def activity(features: Tensor) -> Activity:
    """Compute the sums over features (..., N, d) that all metrics of activations share.

    Raises:
        ValueError: features have fewer than two axes.
    """
    if features.ndim < 2:
        raise ValueError(f"expected features (..., N, d), got shape {tuple(features.shape)}")
    values = features.detach()
    total: Tensor = values.abs().double().sum(-2)
    zeros = (values == 0).sum((-2, -1)).double()
    return Activity(total, zeros, values.shape[-2])


def pooled_activity(parts: Sequence[Activity]) -> Activity:
    """Add the sums over the examples of all `parts`, which have the same width."""
    total, zeros = torch.stack([part.total for part in parts]), torch.stack([part.zeros for part in parts])
    return Activity(total.sum(0), zeros.sum(0), sum(part.examples for part in parts))


def activation_zero_share(features: Tensor | Activity) -> Tensor:
    """Return the share of activations that are exactly zero, over examples and units. features (..., N, d) -> (...)."""
    known = _activity(features)
    share = known.zeros / (known.examples * known.total.shape[-1])
    return torch.where(known.means.isfinite().all(-1), share, torch.nan)


def dormant(features: Tensor | Activity, tau: float) -> Tensor:
    """Return the share of units with mean|h_i| / mean_k mean|h_k| ≤ τ (Sokar et al. 2023, arXiv:2302.12902).

    The inner mean is over examples, the outer over units. features (..., N, d) -> (...), from 0 to 1;
    NaN if all features are zero.
    """
    means = _activity(features).means
    average = means.mean(-1, keepdim=True)
    share = (means / average <= tau).double().mean(-1)
    return torch.where(average[..., 0].isfinite() & (average[..., 0] > 0), share, torch.nan)


def dead_share(features: Tensor | Activity) -> Tensor:
    """Return the share of units that are always zero. features (..., N, d) -> (...); NaN for N = 0 or d = 0."""
    means = _activity(features).means
    return torch.where(means.isfinite().all(-1), (means == 0).double().mean(-1), torch.nan)


def note(weights: Tensor) -> str | None:
    """Return why some metric of one weight vector (n,) is NaN, else None."""
    assert weights.ndim == 1, "expected one vector without leading axes"
    if weights.numel() == 0:
        return "no weights"
    if not weights.isfinite().all():
        return "the weights are not finite"
    if not weights.any():
        return "all weights are zero"
    if weights.numel() == 1:
        return "expected at least 2 weights, got 1"
    if (weights == weights[0]).all():
        return "the weights do not vary"
    return None


def activation_note(features: Tensor | Activity) -> str | None:
    """Return why some metric of one N×d matrix of activations is NaN, else None."""
    known = _activity(features)
    assert known.means.ndim == 1, "expected one matrix without leading axes"
    width = len(known.means)
    if known.examples == 0 or width == 0:
        return f"no features: N = {known.examples}, d = {width}"
    if not known.means.isfinite().all():
        return "the features are not finite"
    if not known.means.any():
        return "all features are zero"
    return None


def _relative(weights: Tensor) -> Tensor:
    """Divide weights by their largest magnitude, in float64, to avoid underflow.

    The metrics that use the result do not depend on the scale. Zero and non-finite vectors become NaN.
    """
    values = weights.detach().double()
    if values.ndim < 1:
        raise ValueError("expected weights of shape (..., n), got a scalar")
    if values.shape[-1] == 0:
        return values
    largest = values.abs().amax(-1, keepdim=True)
    return torch.where(largest.isfinite() & (largest > 0), values / largest, torch.nan)


def _ascending(values: Tensor) -> Tensor:
    """Sort values (..., n) along the last axis."""
    if values.device.type == "cpu":
        # NumPy's sort takes 1 ms for mlp-100, an eighth of the time of torch's, which also returns indices.
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _activity(features: Tensor | Activity) -> Activity:
    return features if isinstance(features, Activity) else activity(features)


def _undefined(values: Tensor) -> Tensor:
    return values.new_full(values.shape[:-1], torch.nan)
