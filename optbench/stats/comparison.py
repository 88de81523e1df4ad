"""Comparison of two runs or two optimizers, seed by seed: pairs of arms, and verdicts on how their metrics differ.

Verdicts are about A: every difference is A - B, over the seeds that finished on both sides, and A is `better` or
`worse`. The family of Holm's correction consists of the declared primary metrics of one pair of arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from optbench.counting import grouped
from optbench.errors import ComparisonError, UsageError, unknown
from optbench.metrics import PRIMARY_METRICS, Metric
from optbench.stats.arms import Arm, arms
from optbench.stats.paired import PairedResult, PairedValues, compare_paired
from optbench.stats.power import comparison_shortages, shortage_text
from optbench.stats.results import Results
from optbench.stats.verdict import Judgement, Question, Verdict, judge
from optbench.suite import suite_differences, suite_hash
from optbench.suite.readings import Data

ENDED = ("ok", "diverged")
Side: TypeAlias = Literal["A", "B"]


@dataclass(frozen=True)
class Selection:
    """One side of a comparison as requested: `RUN`, `RUN:OPTIMIZER` or `RUN:OPTIMIZER/VARIANT`."""

    results: Results
    optimizer: str | None = None
    variant: str | None = None

    @staticmethod
    def of(results: Results, named: str) -> Selection:
        """Return a selection from a run.

        named: `OPTIMIZER`, `OPTIMIZER/VARIANT`, or empty to select all optimizers.
        """
        optimizer, _, variant = named.partition("/")
        return Selection(results, optimizer or None, variant or None)

    @property
    def named(self) -> str:
        """The text after the colon: `OPTIMIZER`, `OPTIMIZER/VARIANT`, or empty."""
        return "/".join(filter(None, (self.optimizer, self.variant)))

    def arms(self) -> list[Arm]:
        """Return the selected arms, in the suite's order.

        Raises:
            UsageError: the run does not have the optimizer, or the optimizer does not have the variant.
        """
        found = arms(self.results)
        for what, wanted in (("optimizer", self.optimizer), ("variant", self.variant)):
            if wanted is not None:
                names = list(dict.fromkeys(getattr(arm, what) for arm in found))
                if wanted not in names:
                    raise UsageError(f"{self.results.run.id}: {unknown(what, wanted, names)}")
                found = [arm for arm in found if getattr(arm, what) == wanted]
        return found


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two arms.

    judgement: None for an exploratory metric, which gets no verdict.
    """

    metric: Metric
    result: PairedResult
    judgement: Judgement | None

    @property
    def has_values(self) -> bool:
        """Whether either side has a value or diverged on any seed.

        For example, forgetting has no value if there is only one task.
        """
        result = self.result
        return (result.median_a, result.median_b) != (None, None) or result.diverged_a + result.diverged_b > 0


@dataclass(frozen=True)
class ArmComparison:
    """Two arms on the same experiment and model.

    seeds: the seeds that finished (`ok` or `diverged`) on both sides.
    same_start: whether both sides had the same initial weights on each of these seeds; None if there are none.
    """

    a: Arm
    b: Arm
    seeds: tuple[int, ...]
    same_start: bool | None
    metrics: tuple[MetricComparison, ...]

    @property
    def planned(self) -> int:
        """The number of seeds planned on both sides."""
        return len(self.a.trials.keys() & self.b.trials.keys())

    @property
    def family(self) -> int:
        """The number of primary metrics: the size of the family in Holm's correction."""
        return sum(found.judgement is not None for found in self.metrics)

    def metric(self, name: str) -> MetricComparison | None:
        return next((found for found in self.metrics if found.metric.name == name), None)

    @property
    def retains_by_learning_less(self) -> Side | None:
        """The side that forgets less, by the verdict, if its learning accuracy is lower by more than the margin."""
        forgetting, learning = self.metric("forgetting"), self.metric("learning_accuracy")
        if forgetting is None or forgetting.judgement is None or learning is None:
            return None
        sides: dict[Verdict, tuple[Side, int]] = {Verdict.BETTER: ("A", -1), Verdict.WORSE: ("B", 1)}
        if (found := sides.get(forgetting.judgement.verdict)) is None or learning.result.difference is None:
            return None
        side, sign = found
        return side if sign * learning.result.difference > learning.metric.margin else None


@dataclass(frozen=True)
class Comparison:
    """The result of `optbench compare`.

    remarks: caveats (different devices, unfinished runs, obstacles overridden by `--force`).
    """

    a: Selection
    b: Selection
    pairs: tuple[ArmComparison, ...]
    remarks: tuple[str, ...]

    def check_paired(self) -> None:
        """Raise ComparisonError if no pair of arms has a common seed."""
        if not any(pair.seeds for pair in self.pairs):
            above = any(arm.count("above_target") for pair in self.pairs for arm in (pair.a, pair.b))
            where = " at or below the target training loss" if above else ""
            raise ComparisonError(f"nothing to compare: no seed has finished on both sides{where}")


def compare(a: Selection, b: Selection, *, experiments: Sequence[str] = (), force: bool = False) -> Comparison:
    """Compare two selections: the two named optimizers or, unless both are named, every optimizer that both contain.

    experiments: the experiments to compare; all of them if empty.

    Raises:
        UsageError: a run does not have the optimizer or variant, or its suite does not have one of the experiments.
        ComparisonError: the runs cannot be compared and `force` is False, or they have nothing in common.
    """
    found, asked = obstacles(a, b)
    if found and not force:
        raise ComparisonError(
            f"{a.results.run.id} and {b.results.run.id} cannot be compared: {'; '.join(found)}; "
            f"{_way_out(a.results, b.results)}pass --force to compare what they have in common"
        )
    for name in experiments:
        for side in (a, b):
            if name not in (valid := side.results.suite.experiments):
                raise UsageError(f"--experiment: {side.results.run.id}: {unknown('experiment', name, valid)}")
    matched = [(x, y) for x, y in _matched(a, b) if not experiments or x.experiment in experiments]
    pairs = tuple(compare_arms(left, right) for left, right in matched)
    forced = [f"forced: {reason}" for reason in found]
    left_out = _left_out(a, b, experiments)
    said = (*_too_few(pairs), *forced, *asked, *left_out, *remarks(a.results, b.results), *_code_remarks(pairs))
    return Comparison(a, b, pairs, said)


def compare_arms(a: Arm, b: Arm, *, primary_only: bool = False) -> ArmComparison:
    """Compare two arms. Only the experiment's primary metrics get verdicts.

    primary_only: whether to compare only these metrics. Otherwise, every metric that either arm measured is compared,
    except those that only state the size of the features.
    """
    seeds = tuple(s for s in a.trials if a.status(s) in ENDED and b.status(s) in ENDED)
    same = same_start(a, b, seeds)
    metrics = {**b.metrics, **a.metrics}
    primary = [metrics[name] for name in a.settings.primary or PRIMARY_METRICS if name in metrics]
    others = [m for m in metrics.values() if not primary_only and m not in primary and not m.is_size]
    taken = [metric for metric in others if a.took(metric.name) or b.took(metric.name)]
    results = {
        metric.name: compare_paired(pairs(a, b, seeds, metric), metric.direction) for metric in (*primary, *taken)
    }
    questions = [ask(a, b, seeds, m, results[m.name], m.margin, comparable=same is not False) for m in primary]
    judged = [MetricComparison(m, results[m.name], j) for m, j in zip(primary, judge(questions), strict=True)]
    return ArmComparison(a, b, seeds, same, (*judged, *(MetricComparison(m, results[m.name], None) for m in taken)))


def ask(
    a: Arm,
    b: Arm | float,
    seeds: Sequence[int],
    metric: Metric,
    result: PairedResult,
    margin: float,
    *,
    comparable: bool,
) -> Question:
    """Return the question of whether `a` differs from `b`.

    comparable: False if the initial weights of the two sides differ.
    """
    found = [side.undefined(metric.name, seeds) for side in (a, b) if isinstance(side, Arm)] if result.p is None else []
    undefined = "; ".join(sorted(set().union(*found)))
    return Question(result, metric.direction, margin, comparable, "initial weights differ", undefined)


def same_start(a: Arm, b: Arm, seeds: Sequence[int]) -> bool | None:
    """Return whether both sides had the same initial weights on each of the seeds; None if there are no seeds."""
    starts = [[arm.results.rows[arm.trials[seed].id].init_hash for seed in seeds] for arm in (a, b)]
    return starts[0] == starts[1] if seeds else None


def pairs(a: Arm, b: Arm | float, seeds: Sequence[int], metric: Metric, data: Data = "pooled") -> PairedValues:
    """Return the values (n,) of a metric on both sides, one per seed; a number `b` is repeated for each seed."""
    left = np.array([a.value(metric.name, seed, data) for seed in seeds], np.float64)
    lost = np.array([a.status(seed) == "diverged" for seed in seeds], np.bool_)
    if not isinstance(b, Arm):
        return PairedValues(left, np.full(len(seeds), float(b)), lost, np.zeros(len(seeds), np.bool_))
    right = np.array([b.value(metric.name, seed, data) for seed in seeds], np.float64)
    return PairedValues(left, right, lost, np.array([b.status(seed) == "diverged" for seed in seeds], np.bool_))


def obstacles(a: Selection, b: Selection) -> tuple[list[str], list[str]]:
    """Return the reasons why two selections cannot be compared, and remarks on differences that are no obstacle.

    If both selections name an optimizer, the settings of these optimizers may differ, because they are what is
    compared.
    """
    first, second = a.results, b.results
    found, asked = [], []
    if suite_hash(first.suite) != suite_hash(second.suite):
        every = suite_differences(first.suite, second.suite)
        named = {a.optimizer, b.optimizer} if a.optimizer is not None and b.optimizer is not None else set()
        others = suite_differences(first.suite, second.suite, apart_from=named)
        if others or not every:
            found.append(f"their suites differ in {_listed(others)}")
        if settings := [difference for difference in every if difference not in others]:
            asked.append(f"the settings of the compared optimizers differ: {_listed(settings)}")
    return [*found, *other_metrics(first, second)], asked


def _listed(differences: Sequence[str]) -> str:
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def _way_out(a: Results, b: Results) -> str:
    """Return advice to name an optimizer on both sides if this removes the only obstacle; otherwise an empty text."""
    for name in a.suite.optimizers:
        if name in b.suite.optimizers and not obstacles(Selection(a, name), Selection(b, name))[0]:
            return f"name the optimizer, as in {a.run.id}:{name} {b.run.id}:{name}, or "
    return ""


def _left_out(a: Selection, b: Selection, experiments: Sequence[str]) -> Iterator[str]:
    """Yield a remark on the experiments and models in which only one side trained an optimizer.

    experiments: the experiments to compare; all of them if empty.
    """
    for one, other in ((a, b), (b, a)):
        missing = grouped(
            (other.named if a.named and b.named else arm.label, arm)
            for arm in _alone(one, other)
            if not experiments or arm.experiment in experiments
        )
        same_run = one.results.run.path.resolve() == other.results.run.path.resolve()
        where = "there" if same_run else f"there in {other.results.run.id}"
        for name, found in missing.items():
            yield f"{'; '.join(_places(found))}: not compared, because {name} was not trained {where}"


def _alone(one: Selection, other: Selection) -> Iterator[Arm]:
    """Yield the arms of one selection for which the other selection has no arm to compare them with."""
    by_name = not (one.optimizer and other.optimizer)  # as in `_matched`
    theirs = {(arm.experiment, arm.model, arm.label if by_name else None) for arm in other.arms()}
    for arm in one.arms():
        requested = not by_name or (other.optimizer in (None, arm.optimizer) and other.variant in (None, arm.variant))
        if requested and (arm.experiment, arm.model, arm.label if by_name else None) not in theirs:
            yield arm


def _places(found: Sequence[Arm]) -> Iterator[str]:
    """Yield each experiment of the arms, followed by the arms' models unless these are all models of the experiment."""
    for experiment, models in grouped((arm.experiment, arm.model) for arm in found).items():
        if {*models} == found[0].results.suite.experiments[experiment].models.keys():
            yield experiment
        else:
            yield f"{experiment}, {', '.join(dict.fromkeys(models))}"


def other_metrics(a: Results, b: Results) -> list[str]:
    """Return why two runs with different versions of the metrics cannot be compared; empty if the versions agree."""
    versions = [results.run.record.get("metrics_version", 1) for results in (a, b)]
    if versions[0] == versions[1]:
        return []
    return [f"they use different versions of the metrics, {versions[0]} and {versions[1]}"]


def remarks(a: Results, b: Results) -> list[str]:
    """Return the caveats of a comparison: unfinished runs, and different metrics, devices or torch versions."""
    found = [
        f"{run.id} is not complete: {run.record.get('status')}"
        for run in {results.run.path: results.run for results in (a, b)}.values()
        if run.record.get("status") != "complete"
    ]
    for name, metric in a.metrics.items():
        other = b.metrics.get(name, metric)
        if (metric.target, metric.source_hash) != (other.target, other.source_hash):
            found.append(f"'{name}' is a different metric in each run: {_of_whom(metric)} in A, {_of_whom(other)} in B")
    for what, key in (("devices", "device"), ("torch versions", "torch")):
        values = [_provenance(results, key) for results in (a, b)]
        if values[0] != values[1]:
            found.append(f"different {what}: {values[0]} in A, {values[1]} in B")
    return found


def _of_whom(metric: Metric) -> str:
    return f"{metric.target} with source {metric.source_hash or 'not recorded'}"


def _too_few(found: Sequence[ArmComparison]) -> Iterator[str]:
    """Yield a sentence for each number of common seeds that is too small for some pairs of arms."""
    usable = [pair for pair in found if pair.seeds and pair.same_start is not False]
    numbers: dict[str, set[int]] = {}
    for pair in usable:
        numbers.setdefault(pair.a.experiment, set()).add(len(pair.seeds))
    by_seeds: dict[int, dict[str, int]] = {}
    for pair in usable:
        place = pair.a.experiment
        if len(numbers[place]) > 1:  # the number of seeds differs between pairs of the experiment, so name the pair
            place = f"{place}, {pair.a.model}: {pair.a.label} against {pair.b.label}"
        by_seeds.setdefault(len(pair.seeds), {})[place] = pair.family
    for n, families in sorted(by_seeds.items()):
        if shortages := comparison_shortages(families, n):
            yield shortage_text(shortages)


def _code_remarks(pairs: Sequence[ArmComparison]) -> list[str]:
    """Return a caveat for each arm whose trials used different versions of a user's code."""
    sides = (arm for pair in pairs for arm in (pair.a, pair.b))
    return list(
        dict.fromkeys(
            f"{arm.results.run.id}, {arm.experiment}, {arm.model}, {arm.label}: {said}"
            for arm in sides
            if (said := arm.mixed_code)
        )
    )


def _provenance(results: Results, key: str) -> str:
    provenance = results.run.record.get("provenance")
    return str(provenance.get(key, "unknown")) if isinstance(provenance, dict) else "unknown"


def _matched(a: Selection, b: Selection) -> list[tuple[Arm, Arm]]:
    """Pair the arms of two selections on the same experiment and model, in A's order.

    If both selections name an optimizer, pair the arms of these two; otherwise, pair the arms that have the same
    optimizer and variant.

    Raises:
        ComparisonError: there are no pairs, both sides are the same, or two sweeps have different variants.
    """
    left, right = a.arms(), b.arms()
    found: list[tuple[Arm, Arm]] = []
    for place in dict.fromkeys((arm.experiment, arm.model) for arm in left):
        here = [arm for arm in left if (arm.experiment, arm.model) == place]
        there = [arm for arm in right if (arm.experiment, arm.model) == place]
        if a.optimizer is not None and b.optimizer is not None:
            found += _crossed(here, there)
        else:
            like = {(arm.optimizer, arm.variant): arm for arm in there}
            found += [(arm, like[arm.optimizer, arm.variant]) for arm in here if (arm.optimizer, arm.variant) in like]
    if a.results.run.path.resolve() == b.results.run.path.resolve():
        found = [(x, y) for x, y in found if (x.optimizer, x.variant) != (y.optimizer, y.variant)]
        if not found:
            run, first, last = a.results.run.id, left[0].optimizer, left[-1].optimizer
            what = "expected two different sides, got the same run twice; name two of its optimizers"
            raise ComparisonError(f"{run}: {what}, as in {run}:{first} {run}:{last}")
    if not found:
        sides = " and ".join(f"{s.results.run.id}{f':{s.optimizer}' if s.optimizer else ''}" for s in (a, b))
        raise ComparisonError(f"{sides} have no optimizers that can be compared on the same experiment and model")
    return found


def _crossed(left: Sequence[Arm], right: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Pair the arms of two optimizers by variant, or all arms of one optimizer with the single arm of the other.

    Raises:
        ComparisonError: both optimizers have several variants, and the variants differ.
    """
    by_variant = {arm.variant: arm for arm in right}
    if len(left) > 1 and {arm.variant for arm in left} == by_variant.keys():
        return [(arm, by_variant[arm.variant]) for arm in left]
    if len(left) > 1 and len(right) > 1:
        many = left[0]
        raise ComparisonError(
            f"{many.optimizer} ({len(left)} variants) and {right[0].optimizer} ({len(right)}) have different variants: "
            f"name one, as in RUN:{many.optimizer}/{many.variant}"
        )
    return [(x, y) for x in left for y in right]
