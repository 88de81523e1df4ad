"""Samplers, which propose the next settings to try from the results of earlier settings.

A sampler is a pure function of the history, so that a resumed tuning proposes the same settings again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optbench.errors import UsageError
from optbench.kinds import value_name
from optbench.studies.tuning.space import Dimension, Search
from optbench.suite.variants import KeyPath, variant_name

Values = Mapping[KeyPath, Any]

WIDENED_BY = 2
"""Number of settings added for every optimizer if the best setting of any of them is at an edge."""
SMALLEST_BATCH = 4
BATCHES = 4
"""Number of batches drawn by the Parzen estimator, unless they would be too small; the first batch is random."""
REDRAWS = 20
APART = 1.02
"""Smallest ratio of an added value to a tried one, before rounding to three significant digits, which changes a value
by at most half a percent."""
ROUNDED = 0.006
"""Largest relative difference between a value of an evenly spaced grid and the same value after rounding."""


@dataclass(frozen=True)
class Tried:
    """A tried setting. worth: relative quality of the setting; higher is better."""

    values: Values
    worth: float


def batch_size(trials: int) -> int:
    """Return how many of `trials` settings the Parzen estimator draws per round of training."""
    return max(SMALLEST_BATCH, math.ceil(trials / BATCHES))


def draw(
    search: Search, history: Sequence[Tried], count: int, sampler: Literal["random", "tpe"], seed: int
) -> list[Values]:
    """Draw `count` untried settings, or fewer if the space is exhausted.

    Values from a range are drawn on a logarithmic scale and rounded to three significant digits; values from a list are
    unordered choices. Without a history, `tpe` draws at random. Otherwise, it draws each setting as if the earlier
    settings of the same batch had the worst result so far (constant liar).

    Raises:
        UsageError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError(f"--sampler {sampler} needs Optuna: pip install 'optbench[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        dimension.name: optuna.distributions.FloatDistribution(*dimension.log, log=True)
        if dimension.log
        else optuna.distributions.CategoricalDistribution(range(len(dimension.values)))
        for dimension in search.dimensions
    }
    source: optuna.samplers.BaseSampler
    if sampler == "tpe" and history:
        source = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True)
    else:
        source = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=source)
    for one in history:
        parameters = {d.name: one.values[d.path] if d.log else _place(d, one.values[d.path]) for d in search.dimensions}
        study.add_trial(optuna.trial.create_trial(params=parameters, distributions=distributions, value=one.worth))
    known = {variant_name(one.values) for one in history}
    found: list[Values] = []
    for _ in range(count * REDRAWS):
        if len(found) == count:
            break
        drawn = study.ask(distributions).params
        values = {d.path: _rounded(d, drawn[d.name]) if d.log else d.values[drawn[d.name]] for d in search.dimensions}
        if variant_name(values) not in known:
            known.add(variant_name(values))
            found.append(values)
    return found


def widen(search: Search, tried: Sequence[Values], best: Values, edges: Sequence[str]) -> list[Values]:
    """Return new settings beyond the best one if it is at an edge, else between the best one and its neighbours.

    The new settings differ from the best one in a single hyper-parameter, chosen among those whose values are all
    positive numbers: the first at an edge or, if none is at an edge, the first in the search. Return an empty list if
    there is no such hyper-parameter.

    tried: all tried settings. edges: names of the hyper-parameters whose best value is at an edge.
    """
    numeric = [d for d in search.dimensions if all(_is_positive(value) for value in d.values)]
    at_an_edge = [dimension for dimension in numeric if dimension.name in edges]
    for dimension in (at_an_edge or numeric)[:1]:
        others = {path: value for path, value in best.items() if path != dimension.path}
        line = sorted({one[dimension.path] for one in tried if others.items() <= one.items()})
        more = _more(line, best[dimension.path], dimension.values, beyond=bool(at_an_edge))
        return [{**best, dimension.path: float(f"{value:.3g}")} for value in more]
    return []


def can_widen(search: Search, edges: Sequence[str]) -> bool:
    """Return whether the best setting is at an edge that can be extended. edges: as in `widen`."""
    return any(d.name in edges and all(_is_positive(value) for value in d.values) for d in search.dimensions)


def _more(line: Sequence[float], at: float, grid: Sequence[float], *, beyond: bool) -> list[float]:
    """Return at most `WIDENED_BY` new values next to the best value, `at`, each at least 2% from every tried one.

    line: the tried values, including `at`; positive and ascending. grid: the values as stated in the suite.
    beyond: whether to extend the line if `at` is its first or last value, rather than add values inside it.
    """
    i = line.index(at)
    is_end = i in (0, len(line) - 1) and len(line) > 1
    if beyond and is_end:
        ratio, at = _step(line, at, grid)
        stride = max(1, math.ceil(math.log(APART) / abs(math.log(ratio))))
        return [at * ratio ** (k * stride) for k in range(1, WIDENED_BY + 1)]
    if is_end:
        neighbour = line[1] if i == 0 else line[-2]
        shares = [k / (WIDENED_BY + 1) for k in range(1, WIDENED_BY + 1)]
        inner = [at * (neighbour / at) ** share for share in shares]
        return inner if _apart(at, inner[0]) else []
    gaps = [(low, high) for low, high in itertools.pairwise(line) if _apart(low, math.sqrt(low * high))]
    nearest = sorted(gaps, key=lambda gap: min(abs(math.log(end / at)) for end in gap))
    return [math.sqrt(low * high) for low, high in nearest[:WIDENED_BY]]


def _step(line: Sequence[float], at: float, grid: Sequence[float]) -> tuple[float, float]:
    """Return the ratio of the next value to the value at an end of the line, and the exact value of this end.

    The values of a logarithmic grid are rounded. If the ratio were that of two rounded neighbours, the line would not
    continue the grid: 0.0001 / 0.000215 of 0.0001 is 4.65e-05, but the grid that contains both has 4.64e-05.
    """
    low, high = min(grid), max(grid)
    ratio = (high / low) ** (1 / (len(grid) - 1))
    even = [low * ratio**k for k in range(len(grid))]
    if any(abs(value / exact - 1) > ROUNDED for value, exact in zip(sorted(grid), even, strict=True)):
        return (at / line[1], at) if at == line[0] else (at / line[-2], at)
    exact = low * ratio ** round(math.log(at / low) / math.log(ratio))
    return (1 / ratio if at == line[0] else ratio), exact


def _apart(a: float, b: float) -> bool:
    return abs(math.log(a / b)) >= math.log(APART)


def _rounded(dimension: Dimension, value: float) -> float:
    assert dimension.log is not None
    low, high = dimension.log
    return min(max(float(f"{value:.3g}"), low), high)


def _place(dimension: Dimension, value: Any) -> int:
    return [value_name(one) for one in dimension.values].index(value_name(value))  # True and 1 are different values


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
