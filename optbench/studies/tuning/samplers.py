"""Samplers, which propose the next settings to try from the results of earlier settings.

A sampler is a pure function of the history, so that a resumed tuning proposes the same settings again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Tried:
    """A tried setting. worth: relative quality of the setting; higher is better."""

    values: Values
    worth: float


def batch_size(trials: int) -> int:
    """Return how many of `trials` settings the Parzen estimator draws in one batch, for one round of training."""
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

    The new settings differ from the best one in a single hyper-parameter, whose values must all be positive numbers:
    the first such hyper-parameter at an edge, or the first of all if none is at an edge. Return an empty list if there
    is no such hyper-parameter.

    tried: all tried settings. edges: names of the hyper-parameters whose best value is at an edge.
    """
    numeric = [d for d in search.dimensions if all(_is_positive(value) for value in d.values)]
    at_an_edge = [dimension for dimension in numeric if dimension.name in edges]
    for dimension in (at_an_edge or numeric)[:1]:
        others = {path: value for path, value in best.items() if path != dimension.path}
        line = sorted({one[dimension.path] for one in tried if others.items() <= one.items()})
        return [{**best, dimension.path: value} for value in _more(line, best[dimension.path], bool(at_an_edge))]
    return []


def can_widen(search: Search, edges: Sequence[str]) -> bool:
    """Return whether the best setting is at an edge that can be extended. edges: as in `widen`."""
    return any(d.name in edges and all(_is_positive(value) for value in d.values) for d in search.dimensions)


def _more(line: Sequence[float], at: float, beyond: bool) -> Iterator[float]:
    """Yield new values next to the best value, `at`.

    line: the tried values, including `at`; positive and ascending.
    beyond: whether to extend the line if `at` is its first or last value, rather than add values inside it.
    """
    i = line.index(at)
    below, above = line[:i], line[i + 1 :]
    if beyond and not (below and above) and (below or above):
        ratio = at / below[-1] if below else at / above[0]
        yield from (_short(at * ratio**k, line) for k in range(1, WIDENED_BY + 1))
    elif below and above:
        yield from (_short(math.sqrt(at * neighbour), line) for neighbour in (below[-1], above[0]))
    elif below or above:
        neighbour = below[-1] if below else above[0]
        shares = [k / (WIDENED_BY + 1) for k in range(1, WIDENED_BY + 1)]
        yield from (_short(at * (neighbour / at) ** share, line) for share in shares)


def _short(value: float, taken: Sequence[float]) -> float:
    """Round a value to three significant digits, or to as many as distinguish it from the taken values."""
    return next(short for digits in range(3, 18) if (short := float(f"{value:.{digits}g}")) not in taken)


def _rounded(dimension: Dimension, value: float) -> float:
    assert dimension.log is not None
    low, high = dimension.log
    return min(max(float(f"{value:.3g}"), low), high)


def _place(dimension: Dimension, value: Any) -> int:
    return [value_name(one) for one in dimension.values].index(value_name(value))  # True and 1 are different values


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
