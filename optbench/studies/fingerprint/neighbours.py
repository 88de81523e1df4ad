"""Which optimizers of the panel are most alike: distances over standardised strips, and how sure their order is.

Every value is taken relative to the panel's mean on the same seed, since what a seed does to all of them (an easier
permutation, a better start) tells no two apart; then divided by the standard deviation of the strip over the panel. The
distance of two optimizers is the root mean square of their differences over the strips that both have, each strip
weighted by the information that it has on who is who: ½ ln(1 + v/w), with v the variance between optimizers and w that
between the seeds of one (the capacity of a Gaussian channel, Shannon 1948). A strip on which optimizers differ by less
than the luck of a seed would otherwise add noise, and one that tells them apart exactly would, in units of that luck,
drown all others.

Legend: `P` optimizers of the panel, `S` strips, `n` seeds, `B` bootstrap samples of the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optbench.stats.bootstrap import percentile_interval, resampled_means
from optbench.studies.fingerprint.entry import Array
from optbench.studies.fingerprint.strips import STRIPS

FEWEST = len(STRIPS) // 2
"""With fewer strips in common there is no distance."""


@dataclass(frozen=True)
class Neighbour:
    """An optimizer of the panel, seen from the one in question.

    distance: in standard deviations of the panel, a strip on average. interval: of it, 95%, over the seeds. nearest:
    share of the bootstrap samples in which no other is nearer. strips: over how many.
    """

    name: str
    distance: float
    interval: tuple[float, float]
    nearest: float
    strips: int


def neighbours(own: Array, panel: Array, names: list[str], apart: str | None = None) -> list[Neighbour]:
    """Return the panel, the nearest first; empty where too few strips are in common.

    own: (S, n). panel: (P, S, n), on the same seeds; NaN where undefined. apart: one of the names, which is no
    neighbour: that of an optimizer of the panel itself.
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
            percentile_interval(drawn[i][np.isfinite(drawn[i])]),
            float((nearest == i).mean()),
            int(counts[i]),
        )
        for i in used
    ]
    return sorted(found, key=lambda one: (one.distance, -one.nearest))


def information(panel: Array) -> Array:
    """Return the weight of each strip, in nats: (P, S, n) -> (S,); 1 for all on one seed, which has no variance."""
    if panel.shape[-1] < 2:
        return np.ones(panel.shape[1])
    relative = panel - _seed_effect(panel)
    # Of an optimizer with fewer than two values nothing is known: it must not count as if it varied by 1, or by 0.
    enough = np.isfinite(relative).sum(axis=-1) >= 2  # (P, S)
    within = _means(np.where(enough, _variance(np.moveaxis(relative, -1, 0)), np.nan).T)  # (S,)
    between = _variance(_means(relative))
    return np.where(within > 0, 0.5 * np.log1p(between / np.where(within > 0, within, 1.0)), 0.0)


def standardised(panel: Array) -> Array:
    """Return the means over seeds, centred and divided by the strip's standard deviation: (P, S, n) -> (P, S)."""
    means = _means(panel - _seed_effect(panel))
    return means / _scale(means)[None]


def own_half_is_nearest(panel: Array, names: list[str], query: np.ndarray, rest: np.ndarray) -> dict[str, str]:
    """Return for each optimizer, with the seeds `query`, who is nearest to it among all on the seeds `rest`.

    A test of the distance: each should find its own other half. panel: (P, S, n); query, rest: indices of seeds.
    """
    # Of all seeds: the halves would differ in which optimizers have values on all of theirs.
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
    """(P, S, n) -> (1, S, n), the panel's mean on each seed over the optimizers that have a value on all seeds."""
    whole = np.isfinite(panel).all(axis=2, keepdims=True)
    counts = whole.sum(axis=0, keepdims=True)
    total = np.where(whole, panel, 0.0).sum(axis=0, keepdims=True)
    return np.asarray(total / np.maximum(counts, 1))


def _means(values: Array) -> Array:
    """(..., n) -> (...), over the seeds that have a value; NaN without any."""
    known = np.isfinite(values)
    counts = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _resampled(values: Array) -> Array:
    """(..., n) -> (..., B): as `_means`, over seeds drawn with replacement, the same for all."""
    known = np.isfinite(values)
    share = resampled_means(known.astype(np.float64))
    total = resampled_means(np.where(known, values, 0.0))
    return np.where(share > 0, total / np.where(share > 0, share, 1.0), np.nan)


def _scale(means: Array) -> Array:
    """(P, ...) -> (...), the standard deviation over the first axis; 1 where all are equal."""
    variance = _variance(means)
    return np.where(variance > 0, np.sqrt(variance), 1.0)


def _variance(values: Array) -> Array:
    """(P, ...) -> (...), over the first axis, of what has a value; 0 with fewer than two."""
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    centre = np.where(known, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
    squares = np.where(known, (values - centre) ** 2, 0.0).sum(axis=0)
    return np.asarray(squares / np.maximum(counts - 1, 1))


def _distances(means: Array, scale: Array, weights: Array) -> tuple[Array, Array]:
    """Of the first to the others: (1 + P, S, B) -> (P, B), and over how many strips (P,)."""
    gaps = (means[1:] - means[:1]) / scale[None, :, None]
    known = np.isfinite(gaps)
    counts = known.sum(axis=1)
    weight = np.where(known, weights[None, :, None], 0.0)
    squares = (weight * np.where(known, gaps, 0.0) ** 2).sum(axis=1)
    total = weight.sum(axis=1)
    return np.where(total > 0, np.sqrt(squares / np.where(total > 0, total, 1.0)), np.nan), counts[:, 0]
