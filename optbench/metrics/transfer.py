"""Transfer: how well frozen features of a network predict the classes of another dataset.

Legend: `N` examples; `d` width of the features; `C` classes of the other dataset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optbench.precision import exact

PENALTIES = tuple(10.0**k for k in range(-8, 3))
"""Penalties of the ridge regression, in units of the mean variance of a feature."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features (N, d) and classes (N,) of examples."""

    features: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """Features of another dataset: `train` to fit, `validation` to choose the penalty, and `test` to score."""

    train: Labelled
    validation: Labelled
    test: Labelled
    classes: int


def transfer_accuracy(probe: Probe) -> float:
    """Return the test accuracy of ridge regression from features to classes; the penalty is chosen on validation data.

    The regression weights are B = (Σ + λ I)⁻¹ Xᵀ Y / N, where X are the centred features, Σ is their covariance and Y
    are the centred one-hot classes. The class with the largest output is predicted. λ is tr Σ / d times the entry of
    `PENALTIES` with the highest validation accuracy, or the largest such entry if several are equally good. All
    penalties share one decomposition (Hoerl & Kennard 1970).

    Returns:
        NaN if features are not finite or do not vary.
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
    """Return why `transfer_accuracy` is undefined."""
    parts = (probe.train, probe.validation, probe.test)
    finite = all(bool(torch.isfinite(part.features).all()) for part in parts)
    return "the features do not vary" if finite else "the features are not finite"
