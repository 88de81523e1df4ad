"""Pruning: keeping only the largest weights, and metrics of the resulting accuracy curve.

The method is one-shot magnitude pruning without fine-tuning, as in Schwarz et al. 2021 (arXiv:2110.00296). Weights are
tensors with two or more axes; biases and the gains of normalisation layers are unchanged. torch is imported only to
rank weights, because reports use the curves and must start fast.

Legend: `n` weights ranked together; `K` points of a curve; `...` any leading axes (trials).

A curve consists of `sparsity` (K,), which is 1 minus the kept fraction, and `accuracy` (..., K), in any order.
Functions of a curve return float64 of shape (...), with NaN if an accuracy is not finite or there are too few points.
They raise ValueError if the shapes disagree, or if a sparsity is repeated or not between 0 and 1. In the scope `layer`,
the output layer keeps more than the nominal fraction, but the curve uses the nominal one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]
Scope = Literal["global", "layer"]

SCOPES: tuple[Scope, ...] = ("global", "layer")
"""`global`: all weights are ranked together; `layer`: each layer's weights are ranked separately."""

KEEP: tuple[float, ...] = tuple(np.geomspace(0.01, 1.0, 20).tolist())
"""The kept fractions of a curve, ascending; the last is exactly 1, the dense network."""

ROUNDING = 1e-15
"""Relative tolerance: a few times the rounding error of a product with a decimal fraction."""


@dataclass(frozen=True)
class Ranking:
    """The weights of one network ranked by magnitude; one ranking gives the masks for every kept fraction.

    places: for each weight tensor, the rank of every weight, 0 for the largest (int64, in the shape of the tensor).
        Ties are ordered by tensor and then by element.
    sizes: for each weight tensor, the number n of weights that are ranked together.
    doubled: the name of the weight tensor that keeps twice the fraction, or None.
    """

    places: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    doubled: str | None

    def mask(self, keep: float) -> dict[str, Tensor]:
        """Return masks of the kept weights, by tensor name: the largest ⌈keep·n⌉ of n weights that are ranked together.

        A mask is True for kept weights and has the shape of the weight tensor. In the scope `layer`, the output layer
        keeps ⌈min(1, 2·keep)·n⌉ weights. The weights kept with a smaller fraction are a subset of those kept with a
        larger one.

        Raises:
            ValueError: keep is not between 0 and 1.
        """
        return {name: place < kept(self._share(name, keep), self.sizes[name]) for name, place in self.places.items()}

    def _share(self, name: str, keep: float) -> float:
        return min(1.0, 2.0 * keep) if name == self.doubled else keep


def rank_weights(weights: Mapping[str, Tensor], scope: Scope, output: str | None = None) -> Ranking:
    """Rank the weights of one network, all together (`global`) or each layer separately (`layer`).

    weights: finite parameters of any shape, by name; those with fewer than two axes are left out.
    output: the name of the output layer's weight; None: no layer has a special role. In the scope `layer`, this layer
        keeps twice the fraction, because all classes depend on its few weights.

    Raises:
        ValueError: `output` is not one of the weights, or the scope is unknown.
    """
    import torch

    if scope not in SCOPES:
        raise ValueError(f"expected scope to be one of {', '.join(SCOPES)}, got {scope}")
    chosen = {name: weight.detach() for name, weight in weights.items() if weight.ndim >= 2}
    if output is not None and output not in chosen:
        raise ValueError(f"expected output to be one of {', '.join(chosen)}, got {output}")
    pools = [[name] for name in chosen] if scope == "layer" else [list(chosen)] if chosen else []
    places: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for pool in pools:
        ranked = _places(torch.cat([chosen[name].flatten() for name in pool]))
        pieces = torch.split(ranked, [chosen[name].numel() for name in pool])
        places.update((name, piece.view(chosen[name].shape)) for name, piece in zip(pool, pieces, strict=True))
        sizes.update(dict.fromkeys(pool, len(ranked)))
    return Ranking(places, sizes, output if scope == "layer" else None)


def mask(weights: Mapping[str, Tensor], keep: float, scope: Scope, output: str | None = None) -> dict[str, Tensor]:
    """Return masks of the kept weights, as `Ranking.mask` does; for several fractions, use `rank_weights` instead."""
    return rank_weights(weights, scope, output).mask(keep)


def prune(weights: Mapping[str, Tensor], keep: float, scope: Scope, output: str | None = None) -> dict[str, Tensor]:
    """Return the parameters with all but the largest weights set to zero.

    Tensors with fewer than two axes are unchanged. With keep = 1, all tensors are unchanged, bit for bit. Arguments and
    errors are those of `rank_weights` and `Ranking.mask`.
    """
    stay = mask(weights, keep, scope, output)
    return {name: w.detach().where(stay[name], 0.0) if name in stay else w for name, w in weights.items()}


def kept(keep: float, n: int) -> int:
    """Return ⌈keep·n⌉ without rounding error: 7 for .07 · 100, although the float product is 7.000000000000001.

    Raises:
        ValueError: keep is not between 0 and 1.
    """
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"expected keep to be from 0 to 1, got {keep}")
    product = keep * n
    nearest = round(product)
    return nearest if math.isclose(product, nearest, rel_tol=ROUNDING) else math.ceil(product)


def pruning_area(sparsity: ArrayLike, accuracy: ArrayLike) -> Array:
    """Return the area under the curve of accuracy against sparsity over the measured range, by the trapezoid rule.

    With the fractions in `KEEP`, the interval between sparsity .99 and 1 is not measured, so the area is at most .99.
    NaN for fewer than two points.

    Example:
        >>> round(float(pruning_area([0, 0.5, 1], [0.9, 0.8, 0.1])), 3)
        0.65
    """
    at, values = _curve(sparsity, accuracy)
    if len(at) < 2:
        return np.full(values.shape[:-1], np.nan)
    area: Array = ((values[..., 1:] + values[..., :-1]) / 2 * np.diff(at)).sum(axis=-1)
    return area


def holding_sparsity(sparsity: ArrayLike, accuracy: ArrayLike, share: float = 0.99) -> Array:
    """Return the largest measured sparsity that retains `share` of the dense accuracy.

    The accuracy at this and every smaller sparsity must be at least `share` times the accuracy at sparsity 0. Points
    after the first one that falls short are ignored, even if the curve rises again. NaN if sparsity 0 was not measured
    or the accuracy there is 0.

    Raises:
        ValueError: share is not in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"expected share to be above 0 and at most 1, got {share}")
    at, values = _curve(sparsity, accuracy)
    dense = values[..., :1]
    enough = values >= share * dense * (1 - ROUNDING)
    holding = np.logical_and.accumulate(enough, axis=-1).sum(axis=-1)
    defined = (at[0] == 0) & (dense[..., 0] > 0)
    return np.where(defined, at[np.maximum(holding, 1) - 1], np.nan)


def pruned_accuracy(sparsity: ArrayLike, accuracy: ArrayLike, keep: float) -> Array:
    """Return the accuracy with the fraction `keep` of the weights, interpolated linearly in log(keep).

    NaN outside the measured range.

    Raises:
        ValueError: keep is not in (0, 1].
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"expected keep to be above 0 and at most 1, got {keep}")
    at, values = _curve(sparsity, accuracy)
    at, values = at[at < 1], values[..., at < 1]
    undefined: Array = np.full(values.shape[:-1], np.nan)
    if not len(at):
        return undefined
    logs, wanted = np.log1p(-at), math.log(keep)  # logs are descending
    near = int(np.argmin(np.abs(logs - wanted)))
    if math.isclose(logs[near], wanted, rel_tol=1e-9, abs_tol=1e-9):  # 1 - (1 - keep) is not exactly keep
        return np.asarray(values[..., near])
    if not logs[-1] < wanted < logs[0]:
        return undefined
    after = int(np.argmax(logs < wanted))
    part = (wanted - logs[after - 1]) / (logs[after] - logs[after - 1])
    between: Array = (1 - part) * values[..., after - 1] + part * values[..., after]
    return between


def _places(values: Tensor) -> Tensor:
    """Return the rank of each value (n,) by magnitude, 0 for the largest; ties are ranked in order of position."""
    import torch

    order = values.abs().sort(descending=True, stable=True).indices
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def _curve(sparsity: ArrayLike, accuracy: ArrayLike) -> tuple[Array, Array]:
    """Return sparsity (K,), ascending, and accuracy (..., K) in this order; a curve that is not finite becomes NaN."""
    at, values = np.asarray(sparsity, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if at.ndim != 1 or not len(at) or values.shape[-1:] != at.shape:
        raise ValueError(f"expected sparsity (K,) and accuracy (..., K), got {at.shape} and {values.shape}")
    if not ((at >= 0) & (at <= 1)).all() or len(np.unique(at)) != len(at):
        raise ValueError(f"expected distinct sparsities from 0 to 1, got {at.tolist()}")
    order = np.argsort(at)
    finite = np.isfinite(values).all(axis=-1, keepdims=True)
    return at[order], np.where(finite, values[..., order], np.nan)
