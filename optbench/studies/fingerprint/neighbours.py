"""Nearest neighbours in the panel: distances over standardised strips, and the certainty of the neighbours' order.

Values are standardised in two steps. First, the panel's mean on the same seed is subtracted, because an effect of the
seed on all optimizers (an easier permutation, a better start) does not distinguish them. Second, the result is divided
by the strip's standard deviation over the panel.

The distance between two optimizers is the weighted root mean square of their differences over the strips on which both
have values. The weight of a strip is the information that it carries about an optimizer's identity, ½ ln(1 + v/w):
the capacity of a Gaussian channel (Shannon 1948), where v is the variance between optimizers and w that between the
seeds of one optimizer. With equal weights, strips on which optimizers differ less than seeds do would only add
noise. If differences were measured in units of the variation between seeds instead, a strip that distinguishes
optimizers exactly would dominate all others.

Legend: `P` optimizers in the panel, `S` strips, `n` seeds, `B` bootstrap samples of the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optbench.stats.bootstrap import percentile_interval, resampled_means
from optbench.stats.power import MIN_PAIRS
from optbench.studies.fingerprint.entry import Array
from optbench.studies.fingerprint.strips import STRIPS

FEWEST = len(STRIPS) // 2
"""Minimum number of strips on which both of two optimizers must have values for their distance to be defined."""


@dataclass(frozen=True)
class Neighbour:
    """An optimizer in the panel, and its distance from the optimizer in question.

    distance: weighted root mean square difference over strips, in standard deviations of the panel.
    interval: 95% interval of the distance over seeds; None with fewer than six seeds, because their resamples are too
        similar.
    nearest: share of the bootstrap samples in which no other optimizer is nearer.
    strips: number of strips on which both optimizers have values.
    shares: share of each strip in the squared distance, (S,); 0 for all strips if the distance is 0.
    """

    name: str
    distance: float
    interval: tuple[float, float] | None
    nearest: float
    strips: int
    shares: tuple[float, ...]


def neighbours(own: Array, panel: Array, names: list[str], apart: str | None = None) -> list[Neighbour]:
    """Return the optimizers in the panel, nearest first, omitting those that have too few strips in common with `own`.

    own: values of the optimizer in question, (S, n); NaN where undefined.
    panel: values of the panel on the same seeds, (P, S, n); NaN where undefined.
    names: names of the panel's optimizers, (P,).
    apart: name of an optimizer to omit as well; pass that of the optimizer in question if it is in the panel.
    """
    every = np.concatenate([own[None], panel])  # (1 + P, S, n)
    means = _means(every - _seed_effect(panel))  # (1 + P, S)
    scale, weights = _scale(means[1:]), information(panel)
    resampled = _resampled(every - _seed_effect(panel))  # (1 + P, S, B)
    squares = _weighted_squares(means[:, :, None], scale, weights)[:, :, 0]  # (P, S)
    totals = squares.sum(axis=1, keepdims=True)
    shares = np.divide(squares, totals, out=np.zeros_like(squares), where=totals > 0)
    distances, counts = _distances(means[:, :, None], scale, weights)
    drawn, _ = _distances(resampled, scale, weights)  # (P, B)
    there = (counts >= FEWEST) & np.isfinite(distances[:, 0])
    used = [i for i, name in enumerate(names) if there[i] and name != apart]
    if not used:
        return []
    nearest = np.array(used)[np.argmin(np.nan_to_num(drawn[used], nan=np.inf), axis=0)]
    found = [
        Neighbour(
            names[i],
            float(distances[i, 0]),
            percentile_interval(drawn[i][np.isfinite(drawn[i])]) if own.shape[-1] >= MIN_PAIRS else None,
            float((nearest == i).mean()),
            int(counts[i]),
            tuple(shares[i].tolist()),
        )
        for i in used
    ]
    return sorted(found, key=lambda one: (one.distance, -one.nearest))


def information(panel: Array) -> Array:
    """Return the weight of each strip, in nats: (P, S, n) -> (S,). With a single seed, all weights are 1."""
    if panel.shape[-1] < 2:
        return np.ones(panel.shape[1])
    relative = panel - _seed_effect(panel)
    # The variance of an optimizer with fewer than two values is unknown and must not count as 0.
    enough = np.isfinite(relative).sum(axis=-1) >= 2  # (P, S)
    within = _means(np.where(enough, _variance(np.moveaxis(relative, -1, 0)), np.nan).T)  # (S,)
    between = _variance(_means(relative))
    return np.where(within > 0, 0.5 * np.log1p(between / np.where(within > 0, within, 1.0)), 0.0)


def standardised(panel: Array) -> Array:
    """Return the standardised means over seeds: (P, S, n) -> (P, S)."""
    means = _means(panel - _seed_effect(panel))
    return means / _scale(means)[None]


def own_half_is_nearest(panel: Array, names: list[str], query: np.ndarray, rest: np.ndarray) -> dict[str, str]:
    """Return, for each optimizer on the seeds `query`, the name of the nearest optimizer on the seeds `rest`.

    This is a test of the distance: every optimizer should be nearest to itself.

    panel: (P, S, n). query, rest: indices of seeds.
    """
    # The effects of seeds are computed from all seeds, because an optimizer may have values on all seeds of one half
    # but not of the other.
    relative = panel - _seed_effect(panel)
    left, right = _means(relative[:, :, query]), _means(relative[:, :, rest])
    scale, weights = _scale(right), information(panel[:, :, rest])
    found = {}
    for i, name in enumerate(names):
        distances, counts = _distances(np.concatenate([left[i : i + 1], right])[:, :, None], scale, weights)
        distances[counts < FEWEST] = np.inf
        found[name] = names[int(np.nanargmin(distances[:, 0]))]
    return found


def _seed_effect(panel: Array) -> Array:
    """Return the mean on each seed, (P, S, n) -> (1, S, n), over the optimizers that have values on all seeds."""
    whole = np.isfinite(panel).all(axis=2, keepdims=True)
    counts = whole.sum(axis=0, keepdims=True)
    total = np.where(whole, panel, 0.0).sum(axis=0, keepdims=True)
    return np.asarray(total / np.maximum(counts, 1))


def _means(values: Array) -> Array:
    """Return the means over seeds that have a value, (..., n) -> (...); NaN if none has one."""
    known = np.isfinite(values)
    counts = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _resampled(values: Array) -> Array:
    """Return `_means` over seeds drawn with replacement, (..., n) -> (..., B), using the same draws for all values."""
    known = np.isfinite(values)
    share = resampled_means(known.astype(np.float64))
    total = resampled_means(np.where(known, values, 0.0))
    return np.where(share > 0, total / np.where(share > 0, share, 1.0), np.nan)


def _scale(means: Array) -> Array:
    """Return the standard deviation over the first axis, (P, ...) -> (...); 1 where all values are equal."""
    variance = _variance(means)
    return np.where(variance > 0, np.sqrt(variance), 1.0)


def _variance(values: Array) -> Array:
    """Return the variance of finite values over the first axis, (P, ...) -> (...); 0 if there are fewer than two."""
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    centre = np.where(known, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
    squares = np.where(known, (values - centre) ** 2, 0.0).sum(axis=0)
    return np.asarray(squares / np.maximum(counts - 1, 1))


def _distances(means: Array, scale: Array, weights: Array) -> tuple[Array, Array]:
    """Return the first optimizer's distances from the others, (P, B), and the numbers of strips that they use, (P,).

    means: means over seeds, (1 + P, S, B). scale, weights: standard deviation and weight of each strip, (S,).
    """
    known = np.isfinite(means[1:] - means[:1])
    counts = known.sum(axis=1)
    squares = _weighted_squares(means, scale, weights).sum(axis=1)
    total = np.where(known, weights[None, :, None], 0.0).sum(axis=1)
    return np.where(total > 0, np.sqrt(squares / np.where(total > 0, total, 1.0)), np.nan), counts[:, 0]


def _weighted_squares(means: Array, scale: Array, weights: Array) -> Array:
    """Return each strip's part of the first optimizer's squared distances, (P, S, B); 0 where a value is missing."""
    gaps = (means[1:] - means[:1]) / scale[None, :, None]
    return np.where(np.isfinite(gaps), weights[None, :, None] * gaps**2, 0.0)
