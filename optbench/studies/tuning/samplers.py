"""Which settings are tried next, given the results of earlier ones.

Pure functions of the history, so that a tuning that was interrupted proposes the same again. A round is a batch of
settings, trained in lock-step.
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
"""So many settings are added for every optimizer when one of them is at an edge."""
SMALLEST_BATCH = 4
BATCHES = 4
"""A Parzen estimator sees results so often, if its batches would not be too small; the first batch is random."""
REDRAWS = 20


@dataclass(frozen=True)
class Tried:
    """A setting that was tried. worth: how good it is compared to the others; higher is better."""

    values: Values
    worth: float


def batch_size(trials: int) -> int:
    """How many of `trials` settings are drawn at once by the Parzen estimator."""
    return max(SMALLEST_BATCH, math.ceil(trials / BATCHES))


def draw(
    search: Search, history: Sequence[Tried], count: int, sampler: Literal["random", "tpe"], seed: int
) -> list[Values]:
    """At most `count` settings that were not tried yet; fewer where the space has no more of them.

    Ranges are drawn from in log, rounded to three significant digits; lists are choices. `tpe` needs a history; the
    settings of one batch are drawn as if the ones before them had done as badly as any (constant liar).

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
    """`WIDENED_BY` more settings: beyond the edge that the best lies at, or else between it and its neighbours.

    They differ from the best in one hyper-parameter: the first at an edge, or else the first that is a positive
    number. None where nothing is a positive number.
    """
    numeric = [d for d in search.dimensions if all(_is_positive(value) for value in d.values)]
    at_an_edge = [dimension for dimension in numeric if dimension.name in edges]
    for dimension in (at_an_edge or numeric)[:1]:
        others = {path: value for path, value in best.items() if path != dimension.path}
        line = sorted({one[dimension.path] for one in tried if others.items() <= one.items()})
        return [{**best, dimension.path: value} for value in _more(line, best[dimension.path], bool(at_an_edge))]
    return []


def can_widen(search: Search, edges: Sequence[str]) -> bool:
    """Whether there is an edge that something lies beyond."""
    return any(d.name in edges and all(_is_positive(value) for value in d.values) for d in search.dimensions)


def _more(line: Sequence[float], at: float, beyond: bool) -> Iterator[float]:
    """New values beside `at`, one of the ascending, positive values of `line`."""
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
    """To three significant digits, or as many as tell it from the others."""
    return next(short for digits in range(3, 18) if (short := float(f"{value:.{digits}g}")) not in taken)


def _rounded(dimension: Dimension, value: float) -> float:
    assert dimension.log is not None
    low, high = dimension.log
    return min(max(float(f"{value:.3g}"), low), high)


def _place(dimension: Dimension, value: Any) -> int:
    return [value_name(one) for one in dimension.values].index(value_name(value))  # True and 1 are two values


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
