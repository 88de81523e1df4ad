"""Transfer: how well another dataset is labelled from the features of a network that stays as it is.

Legend: `N` examples; `d` width of the features; `C` classes of the other dataset; `K` penalties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.precision import exact

PENALTIES = tuple(10.0**k for k in range(-8, 3))
"""Of the ridge regression, in units of the mean variance of a feature."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features (N, d) of some examples, and their classes (N,)."""

    features: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """Features of another dataset: `train` to fit, `validation` to choose the penalty, `test` to score."""

    train: Labelled
    validation: Labelled
    test: Labelled
    classes: int


def transfer_accuracy(probe: Probe) -> float:
    """The test accuracy of ridge regression from features to classes, its penalty chosen on validation data.

    B = (Σ + λ I)⁻¹ Xᵀ Y / N with X the centred features, Σ their covariance and Y the centred indicators of the
    classes; the label is the largest entry. λ is one of `PENALTIES` times tr Σ / d: that with the highest validation
    accuracy, the largest among equals. One decomposition serves all penalties (Hoerl & Kennard 1970).

    Returns:
        NaN where features are not finite, or all the same.
    """
    h, means = exact(probe.train.features), exact(probe.train.features).mean(0)
    if not all(bool(torch.isfinite(part.features).all()) for part in (probe.train, probe.validation, probe.test)):
        return math.nan
    x = h - means
    y = torch.nn.functional.one_hot(probe.train.targets.to(h.device), probe.classes).to(h)
    shares = y.mean(0)
    s, v = torch.linalg.eigh(x.T @ x / len(x))
    scale = float(s.sum()) / len(s)
    if scale <= 0:
        return math.nan
    onto = v.T @ (x.T @ (y - shares)) / len(x)
    s = s.clamp_min(0)

    def accuracy(part: Labelled, penalty: float) -> float:
        weights = v @ (onto / (s + penalty * scale)[:, None])
        predicted = ((exact(part.features) - means) @ weights + shares).argmax(1)
        return float((predicted == part.targets.to(predicted.device)).double().mean())

    _, penalty = max((accuracy(probe.validation, penalty), penalty) for penalty in PENALTIES)
    return accuracy(probe.test, penalty)


def note(probe: Probe) -> str:
    """Why it is undefined."""
    parts = (probe.train, probe.validation, probe.test)
    finite = all(bool(torch.isfinite(part.features).all()) for part in parts)
    return "features that are all the same" if finite else "features that are not finite"
