"""The setting that a tuning run chooses for each optimizer, according to the rule in the suite.

The rule chooses the setting with the best mean of a metric over models and tuning seeds, without test data. A metric of
the accuracy matrix is measured on validation data. With such a metric, only settings whose learning accuracy is close
to the optimizer's best can be chosen, because with a learning rate too small to learn, there is nothing to forget.
Online accuracy, which is measured on each training batch before its update, needs no such condition, because it
measures learning itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from types import MappingProxyType
from typing import Any, Literal

from optbench.counting import grouped
from optbench.errors import SuiteError, UsageError, unknown
from optbench.metrics import Metric
from optbench.metrics.metric import Direction
from optbench.metrics.own import check_rule
from optbench.stats.arms import Arm, Status, arms
from optbench.stats.results import Results
from optbench.suite.schema import Sampler, Tune
from optbench.suite.variants import leaves

End = Literal["smallest", "largest"]

LEARNING = "learning_accuracy"
SHOWN = (LEARNING, "average_accuracy", "forgetting")
"""Metrics that show which settings forget little only because they learn little."""
NEAR = 0.05
"""A value is considered to be at an end of the search space if its distance from the end is at most this fraction of
the space's width, because random draws never reach an end exactly."""
SLACK = 1e-12
"""Tolerance for rounding errors: in floating point, .52 - .05 is more than .47."""


@dataclass(frozen=True)
class TriedSetting:
    """One setting of an optimizer, with its results over the models and the tuning seeds.

    hyperparameters: the tried values, by dotted path.
    score, learning: means of the rule's metric and of learning accuracy; NaN unless every trial is ok and has a value.
    ok, diverged, failed, above_target: numbers of trials with this status, out of `planned`.
    learns: whether the setting learns enough to be chosen.
    by_seed: for the rule's metric and those in `SHOWN`, the mean over models on each seed; empty unless every trial is
        ok.
    """

    variant: str
    hyperparameters: Mapping[str, Any]
    score: float
    learning: float
    ok: int
    diverged: int
    failed: int
    planned: int
    above_target: int = 0
    learns: bool = False
    by_seed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Number of unfinished trials, in a run that was interrupted or is still in progress."""
        return self.planned - self.ok - self.diverged - self.failed - self.above_target

    @property
    def eligible(self) -> bool:
        """Whether all trials are ok and the score is defined."""
        return self.ok == self.planned and math.isfinite(self.score)


@dataclass(frozen=True)
class TunedOptimizer:
    """One optimizer on one experiment: the tried settings, and the chosen one.

    models: the models over which scores are averaged.
    seeds: the tuning seeds.
    margin: accepted distance from the best learning accuracy; None if any distance is accepted.
    space: the search space by dotted path, as in the suite's `tune`; None if `tune` has none for this optimizer.
    settings: the tried settings, in the order tried.
    chosen: the chosen setting; None if none can be chosen.
    ends: the end of the search space at which a chosen value lies, by dotted path; values at neither end are omitted.
    """

    run: str
    experiment: str
    optimizer: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    metric: Metric
    margin: float | None
    sampler: Sampler
    space: Mapping[str, Any] | None
    settings: tuple[TriedSetting, ...]
    chosen: TriedSetting | None
    ends: Mapping[str, End]
    in_bits: bool = False
    """Whether scores are negative bits per byte, for text."""

    @property
    def score(self) -> str:
        """The word for the scores: `accuracy`, or `score` for text."""
        return "score" if self.in_bits else "accuracy"

    @property
    def edges(self) -> tuple[str, ...]:
        """The hyper-parameters whose chosen value is at an end of the search space."""
        return tuple(self.ends)

    @property
    def least_learning(self) -> float | None:
        """The learning accuracy below which a setting cannot be chosen; None if there is no such bound."""
        best = best_learning(self.settings)
        return None if self.margin is None or math.isnan(best) else best - self.margin

    @property
    def tied(self) -> list[TriedSetting]:
        """The other settings that learn enough and have the same score as the chosen one."""
        if (chosen := self.chosen) is None:
            return []
        others = (s for s in self.settings if s.eligible and s.learns and s.variant != chosen.variant)
        return [setting for setting in others if abs(setting.score - chosen.score) <= SLACK]

    def values(self, path: str) -> list[Any]:
        """Return the distinct tried values of a hyper-parameter, in the order tried."""
        found = (setting.hyperparameters[path] for setting in self.settings if path in setting.hyperparameters)
        return list({_key(value): value for value in found}.values())


def tunings(results: Results) -> list[TunedOptimizer]:
    """Return the choices of a tuning run for every optimizer and experiment, in suite order; empty for other runs.

    A suite without `tune` uses the default rule.

    Raises:
        SuiteError: the rule's metric is unknown, or cannot be used to choose settings.
        StoreError: a table is unreadable.
    """
    suite = results.suite
    if suite.stage != "tune":
        return []
    rule = suite.tune or Tune()
    groups = grouped(((arm.experiment, arm.optimizer), arm) for arm in arms(results))
    return [_tuned(results, rule, _metric(results, rule, name), found) for (name, _), found in groups.items()]


def choose(settings: Sequence[TriedSetting], margin: float | None, direction: Direction) -> TriedSetting | None:
    """Return the eligible setting with the best score among those that learn enough; in case of a tie, the first.

    Return None if no setting can be chosen.

    margin: accepted distance from the best learning accuracy; None if any distance is accepted.
    direction: `lower` if lower scores are better, else `higher`.
    """
    assert direction in ("higher", "lower"), direction
    sign = 1.0 if direction == "higher" else -1.0
    chosen: TriedSetting | None = None
    for setting, judged in zip(settings, gated(settings, margin), strict=True):
        if setting.eligible and judged.learns and (chosen is None or sign * (setting.score - chosen.score) > SLACK):
            chosen = setting
    return chosen


def gated(settings: Sequence[TriedSetting], margin: float | None) -> list[TriedSetting]:
    """Return the settings with `learns` set according to the margin.

    The margin is measured from the best learning accuracy among the eligible settings.
    """
    if margin is None:
        return [replace(setting, learns=True) for setting in settings]
    least = best_learning(settings) - margin - SLACK
    return [replace(setting, learns=setting.learning >= least) for setting in settings]


def best_learning(settings: Sequence[TriedSetting]) -> float:
    """Return the highest learning accuracy among the eligible settings; NaN if there are none."""
    return max((s.learning for s in settings if s.eligible and math.isfinite(s.learning)), default=math.nan)


def end_of_search(value: Any, tried: Sequence[Any], space: Any, sampler: Sampler) -> End | None:
    """Return the end of the search space at which a value lies; None if it is at neither end.

    The search space extends from the smallest to the largest number among the tried values and those in `space`. For a
    grid, only the two ends themselves count. Otherwise, a value counts if its distance from an end is at most 5% of the
    width of the space (on a logarithmic scale if all numbers are positive). A lower end of 0 is a natural bound and
    does not count. Text, booleans, lists and single values have no ends.

    tried: the tried values. space: a list of values, `{log: [low, high], points: n}`, or None.
    """
    numbers = sorted({float(item) for item in tried if is_number(item)})
    if not is_number(value) or len(numbers) < 2:
        return None
    numbers = sorted({*numbers, *_bounds(space)})
    low, high = numbers[0], numbers[-1]
    scale: Callable[[float], float] = math.log if low > 0 else float
    room = 0.0 if sampler == "grid" else NEAR * (scale(high) - scale(low))
    if value >= high or (room and scale(value) >= scale(high) - room):
        return "largest"
    if low == 0:
        return None
    return "smallest" if value <= low or (room and scale(value) <= scale(low) + room) else None


def departures(arm: Arm) -> Mapping[str, Any]:
    """Return an arm's values that differ from the chosen values recorded in its suite, by dotted path.

    A value is None if the arm does not have the hyper-parameter.
    """
    if arm.tuning is None or not arm.tuning.chosen:
        return {}
    given = _paths(next(iter(arm.trials.values())).hyperparameters)
    return {path: given.get(path) for path, value in arm.tuning.chosen.items() if _key(given.get(path)) != _key(value)}


def _tuned(results: Results, rule: Tune, metric: Metric, found: Sequence[Arm]) -> TunedOptimizer:
    experiment, optimizer = found[0].experiment, found[0].optimizer
    here = rule.experiments.get(experiment)
    named = (here and here.models) or list(found[0].settings.models)
    models = tuple(model for model in found[0].settings.models if model in named)
    space = _space(rule, experiment, optimizer)
    margin = None if metric.kind == "online" else rule.learning_margin
    by_variant = grouped((arm.variant, arm) for arm in found if arm.model in models)
    given = [_paths(next(iter(group[0].trials.values())).hyperparameters) for group in by_variant.values()]
    paths = _tried(given, space or {})
    settings = gated(
        [
            _setting(group, {path: values[path] for path in paths if path in values}, metric.name)
            for group, values in zip(by_variant.values(), given, strict=True)
        ],
        margin,
    )
    chosen = choose(settings, margin, metric.direction)
    tuned = TunedOptimizer(
        run=results.run.id,
        experiment=experiment,
        optimizer=optimizer,
        models=models,
        seeds=tuple(results.suite.seeds),
        metric=found[0].metrics[metric.name],
        margin=margin,
        sampler=_sampler(results),
        space=space,
        settings=tuple(settings),
        chosen=chosen,
        ends={},
        in_bits=found[0].in_bits,
    )
    return tuned if chosen is None else replace(tuned, ends=MappingProxyType(dict(_ends(tuned, chosen))))


def _metric(results: Results, rule: Tune, experiment: str) -> Metric:
    chosen = rule.metric_on(experiment)
    place = (
        f"{results.run.path / 'suite.yaml'}: tune.{'' if chosen is rule.metric else f'experiments.{experiment}.'}metric"
    )
    try:
        check_rule(metric := results.metrics[chosen.name])
    except KeyError:
        raise SuiteError(f"{place}: {unknown('metric', chosen.name, results.metrics)}") from None
    except UsageError as error:
        raise SuiteError(f"{place}: {error}") from None
    return metric


def _setting(group: Sequence[Arm], hyperparameters: Mapping[str, Any], metric: str) -> TriedSetting:
    """Summarise one setting. group: the setting's arms, one per model."""
    statuses: tuple[Status, ...] = ("ok", "diverged", "failed", "above_target")
    ok, diverged, failed, above = (sum(arm.count(status) for arm in group) for status in statuses)
    planned = sum(len(arm.trials) for arm in group)
    by_seed = {
        name: tuple(fmean(arm.value(name, seed) for arm in group) for seed in group[0].trials)
        for name in ((*SHOWN, metric) if ok == planned else ())
    }
    score, learning = (fmean(by_seed[name]) if by_seed else math.nan for name in (metric, LEARNING))
    return TriedSetting(
        variant=group[0].variant,
        hyperparameters=MappingProxyType(dict(hyperparameters)),
        score=score,
        learning=learning,
        ok=ok,
        diverged=diverged,
        failed=failed,
        above_target=above,
        planned=planned,
        by_seed=MappingProxyType(by_seed),
    )


def _ends(tuned: TunedOptimizer, chosen: TriedSetting) -> Iterator[tuple[str, End]]:
    for path, value in chosen.hyperparameters.items():
        end = end_of_search(value, tuned.values(path), (tuned.space or {}).get(path), tuned.sampler)
        if end is not None:
            yield path, end


def _tried(given: Sequence[Mapping[str, Any]], space: Mapping[str, Any]) -> list[str]:
    """Return the paths whose values differ between variants, and those declared as searched."""
    return [
        path
        for path in dict.fromkeys(path for values in given for path in values)
        if path in space or len({_key(values[path]) if path in values else None for values in given}) > 1
    ]


def _space(rule: Tune, experiment: str, optimizer: str) -> Mapping[str, Any] | None:
    here = rule.experiments.get(experiment)
    declared = here.optimizers.get(optimizer) if here else None
    if declared is None:
        declared = (rule.optimizers or {}).get(optimizer)
    return None if declared is None else MappingProxyType(dict(_searched(declared)))


def _searched(space: Mapping[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the space of each hyper-parameter, including those of inner optimizers."""
    for key, value in space.items():
        if isinstance(value, Mapping) and not {"log", "of"} & value.keys():
            yield from _searched(value, *above, key)
        else:
            yield ".".join([*above, key]), value


def _bounds(space: Any) -> list[float]:
    if isinstance(space, Mapping) and "log" in space:
        low, high = space["log"]
        return [float(low), float(high)]
    return [float(item) for item in space if is_number(item)] if isinstance(space, list) else []


def _sampler(results: Results) -> Sampler:
    record = results.run.record.get("tune")
    said = record.get("sampler") if isinstance(record, dict) else None
    return said if said in ("random", "tpe") else "grid"


def _paths(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {".".join(path): value for path, value in leaves(hyperparameters).items()}


def _key(value: Any) -> str:
    """Return a key that is the same for equal values, such as 1 and 1.0, but not for 1 and True."""
    return json.dumps(float(value) if is_number(value) else value, sort_keys=True)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
