"""Nearest neighbours in the panel: distances over standardised strips, and how certain their order is.

The panel's mean on the same seed is subtracted from every value, because an effect of the seed on all optimizers (an
easier permutation, a better start) does not distinguish them. The result is divided by the standard deviation of the
strip over the panel. The distance between two optimizers is the root mean square of their differences over the strips
that both have. Each strip is weighted by the information that it carries about an optimizer's identity, ½ ln(1 + v/w),
where v is the variance between optimizers and w the variance between the seeds of one optimizer (the capacity of a
Gaussian channel, Shannon 1948). With equal weights, a strip on which optimizers differ by less than seeds do would add
noise; in units of the variation between seeds, a strip that distinguishes optimizers exactly would dominate all others.

Legend: `P` optimizers of the panel, `S` strips, `n` seeds, `B` bootstrap samples of the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optbench.stats.bootstrap import percentile_interval, resampled_means
from optbench.stats.power import MIN_PAIRS
from optbench.studies.fingerprint.entry import Array
from optbench.studies.fingerprint.strips import STRIPS

FEWEST = len(STRIPS) // 2
"""Minimum number of common strips; with fewer, the distance is undefined."""


@dataclass(frozen=True)
class Neighbour:
    """An optimizer of the panel, and its distance from the optimizer in question.

    distance: root mean square over strips, in standard deviations of the panel. interval: its 95% interval over
    seeds; None with fewer than six, because the resamples are too similar. nearest: share of the bootstrap samples in
    which no other optimizer is nearer. strips: number of strips that both have.
    """

    name: str
    distance: float
    interval: tuple[float, float] | None
    nearest: float
    strips: int


def neighbours(own: Array, panel: Array, names: list[str], apart: str | None = None) -> list[Neighbour]:
    """Return the optimizers of the panel, nearest first, omitting those that share too few strips with `own`.

    own: (S, n). panel: (P, S, n), on the same seeds; NaN where undefined. apart: the name of `own` if it is
    in the panel, where it is then omitted.
    """
    every = np.concatenate([own[None], panel])  # (1 + P, S, n)
    means = _means(every - _seed_effect(panel))  # (1 + P, S)
    scale, weights = _scale(means[1:]), information(panel)
    resampled = _resampled(every - _seed_effect(panel))  # (1 + P, S, B)
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
        )
        for i in used
    ]
    return sorted(found, key=lambda one: (one.distance, -one.nearest))


def information(panel: Array) -> Array:
    """Return the weight of each strip, in nats: (P, S, n) -> (S,). With one seed, which has no variance, all are 1."""
    if panel.shape[-1] < 2:
        return np.ones(panel.shape[1])
    relative = panel - _seed_effect(panel)
    # The variance of an optimizer with fewer than two values is unknown; it must not count as 0.
    enough = np.isfinite(relative).sum(axis=-1) >= 2  # (P, S)
    within = _means(np.where(enough, _variance(np.moveaxis(relative, -1, 0)), np.nan).T)  # (S,)
    between = _variance(_means(relative))
    return np.where(within > 0, 0.5 * np.log1p(between / np.where(within > 0, within, 1.0)), 0.0)


def standardised(panel: Array) -> Array:
    """Return the means over seeds, centred and divided by the strip's standard deviation: (P, S, n) -> (P, S)."""
    means = _means(panel - _seed_effect(panel))
    return means / _scale(means)[None]


def own_half_is_nearest(panel: Array, names: list[str], query: np.ndarray, rest: np.ndarray) -> dict[str, str]:
    """Return the optimizer whose values on the seeds `rest` are nearest to those of each optimizer on `query`.

    This tests the distance: the nearest should be the same optimizer. panel: (P, S, n); query, rest: indices of seeds.
    """
    # The mean is over all seeds, because optimizers with values on all seeds of one half may lack some in the other.
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
    """Return the mean on each seed, (P, S, n) -> (1, S, n), over the optimizers that have a value on all seeds."""
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
    """Return distances from the first to the others, (1 + P, S, B) -> (P, B), and numbers of strips used, (P,)."""
    gaps = (means[1:] - means[:1]) / scale[None, :, None]
    known = np.isfinite(gaps)
    counts = known.sum(axis=1)
    weight = np.where(known, weights[None, :, None], 0.0)
    squares = (weight * np.where(known, gaps, 0.0) ** 2).sum(axis=1)
    total = weight.sum(axis=1)
    return np.where(total > 0, np.sqrt(squares / np.where(total > 0, total, 1.0)), np.nan), counts[:, 0]
