"""Neural collapse: whether features collapse to class means, and the class means and the last layer to a simplex.

Legend: `N` examples; `d` width of the features; `C` classes that have examples.

Everything is computed in float64 from training examples: features h, class means μ_c (C, d), the mean μ_G of the class
means, centred means m_c = μ_c - μ_G, and W (C, d), the weights of the last layer. Source, unless another is given:
Papyan, Han & Donoho 2020 (doi:10.1073/pnas.2015509117).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from optbench.precision import exact

_NULL = 1e-10
"""Eigenvalues of the between-class covariance below this fraction of the largest count as zero."""


@dataclass(frozen=True, eq=False)
class Collapse:
    """The data for metrics of neural collapse.

    features: (N, d). targets: (N,).
    predicted: (N,), the class with the largest logit.
    head: weights of the last layer for all classes, (classes, d); None if the network has no last linear layer.
    logits: (N, classes), used only by `class_margin`.
    """

    features: Tensor
    targets: Tensor
    predicted: Tensor
    head: Tensor | None
    logits: Tensor | None = None

    @cached_property
    def classes(self) -> Tensor:
        """(C,) classes that have examples, ascending."""
        found: Tensor = torch.unique(self.targets)
        return found

    @cached_property
    def place(self) -> Tensor:
        """(N,) index in `classes` of each example's class."""
        return torch.searchsorted(self.classes, self.targets)

    @cached_property
    def h(self) -> Tensor:
        """(N, d) the features in float64."""
        return exact(self.features)

    @cached_property
    def finite(self) -> bool:
        """True if all features are finite."""
        return bool(torch.isfinite(self.h).all())

    @cached_property
    def means(self) -> Tensor:
        """(C, d) the class means μ."""
        sums = self.h.new_zeros(len(self.classes), self.h.shape[1]).index_add(0, self.place, self.h)
        return sums / torch.bincount(self.place, minlength=len(self.classes))[:, None]

    @cached_property
    def centred(self) -> Tensor:
        """(C, d) the centred class means m."""
        return self.means - self.means.mean(0)


def nc0(collapse: Collapse) -> float:
    """Return ‖Wᵀ1‖² / C, which is 0 if the rows of W sum to zero (arXiv:2602.16642).

    Here W and C include classes without examples.
    """
    if collapse.head is None:
        return math.nan
    w = exact(collapse.head)
    return float(w.sum(0).square().sum() / len(w))


def nc1(collapse: Collapse) -> float:
    """Return tr(Σ_W Σ_B⁺) / C.

    Σ_W is the within-class covariance over all examples, and Σ_B is the covariance of the class means.
    """
    if not collapse.finite:
        return math.nan
    within, m = collapse.h - collapse.means[collapse.place], collapse.centred
    _, s, v = torch.linalg.svd(m, full_matrices=False)  # Σ_B⁺ = C vᵀ s⁻² v
    kept = s.square() > _NULL * s.square().max()
    if not bool(kept.any()):
        return math.nan
    return float((within @ v[kept].T / s[kept]).square().sum() / len(within))


def nc2_norm(collapse: Collapse) -> float:
    """Return sd_c ‖m_c‖ / mean_c ‖m_c‖, with the population standard deviation."""
    norms = collapse.centred.norm(dim=1)
    return float(norms.std(correction=0) / norms.mean())


def nc2_angle(collapse: Collapse) -> float:
    """Return mean_{c≠c'} |cos(m_c, m_c') + 1/(C-1)|."""
    m = collapse.centred
    if len(m) < 2:
        return math.nan
    unit = m / m.norm(dim=1, keepdim=True)
    apart = (unit @ unit.T + 1 / (len(m) - 1)).abs()
    return float((apart.sum() - apart.diagonal().sum()) / (len(m) * (len(m) - 1)))


def nc3(collapse: Collapse) -> float:
    """Return ‖W/‖W‖_F - M/‖M‖_F‖²_F, where M has the rows m_c, and W is restricted to classes that have examples."""
    if collapse.head is None:
        return math.nan
    w, m = exact(collapse.head)[collapse.classes], collapse.centred
    return float((w / w.norm() - m / m.norm()).square().sum())


def nc4(collapse: Collapse) -> float:
    """Return the share of examples for which the network does not predict the class with the nearest mean."""
    if not collapse.finite:
        return math.nan
    nearest = collapse.classes[torch.cdist(collapse.h, collapse.means).argmin(1)]
    return float((nearest != collapse.predicted).double().mean())


def class_margin(collapse: Collapse) -> float:
    """Return mean_i min_{c≠y} (z_y - z_c) / ‖w_y - w_c‖ / √tr Σ.

    z are an example's logits and y is its class; w are the rows of the last layer's weights, and Σ is the covariance of
    the features. The margin is the mean signed distance of training examples from the decision boundary of the last
    layer, relative to the spread of the features. It is the margin in feature space of Elsayed et al. 2018
    (arXiv:1803.05598), normalised as in Jiang et al. 2019 (arXiv:1810.00113). Scaling the last layer, or both the
    features and the bias of the last layer, does not change the margin.
    """
    if collapse.head is None or collapse.logits is None or not collapse.finite:
        return math.nan
    w, z, own = exact(collapse.head), exact(collapse.logits), collapse.targets[:, None]
    apart = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist")
    distances = (z.gather(1, own) - z) / apart[collapse.targets]
    nearest = distances.scatter(1, own, math.inf).min(1).values
    spread = (collapse.h - collapse.h.mean(0)).square().sum(1).mean().sqrt()
    return float(nearest.mean() / spread)


def margin_note(collapse: Collapse) -> str:
    """Return why `class_margin` is undefined."""
    if not collapse.finite:
        return "the features are not finite"
    if collapse.head is None or collapse.logits is None:
        return "the network has no last linear layer whose inputs are the features"
    return "expected at least 2 classes, features that vary, and different rows of the last layer"


def note(collapse: Collapse) -> str:
    """Return why a metric of neural collapse is undefined."""
    if not collapse.finite:
        return "the features are not finite"
    if len(collapse.classes) < 2:
        return "expected at least 2 classes"
    if collapse.head is None:
        return "the network has no last linear layer whose inputs are the features"
    return "the class means are equal"
