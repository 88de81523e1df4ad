"""Switched optimizers: do the first k steps decide the solution?

A `switch` takes its first k steps with optimizer A and all others with B; `gradient-noise` perturbs the gradients of
its base in the first k steps. Both are compared with the *pure* arms of the same experiment and model, which are
trained by A or B alone.

Legend: `n` seeds; in shapes, `B` resamples; m_AB(k), m_A and m_B are the means of a metric over the seeds on
which the switched arm and both pure arms have values.
Source: Pascanu et al. 2025, arXiv:2507.12224, sections 1 and 3.1: the early phase determines the basin.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optbench.counting import count
from optbench.kinds import value_name
from optbench.metrics import PRIMARY_METRICS
from optbench.optimizers import registry
from optbench.plan import Trial
from optbench.stats.arms import Arm, arms
from optbench.stats.between import Between
from optbench.stats.bootstrap import percentile_interval, resampled_means
from optbench.stats.results import Results
from optbench.stats.signed_rank import round_differences, signed_rank_test

Array: TypeAlias = NDArray[np.float64]
SwitchKind = Literal["switch", "control", "noise"]
"""`switch`: from A to a different B. `control`: from A to A, which shows the effect of switching itself. `noise`: the
first steps have perturbed gradients."""
Side = Literal["first", "then"]
Statistic = Literal["rho", "difference"]
"""`rho`: (m_AB(k) - m_B)/(m_A - m_B). `difference`: the mean at k minus the pure arm's mean, in the metric's unit."""

SWITCH, NOISE = "switch", "gradient-noise"
STEP_SETTINGS = {SWITCH: "at", NOISE: "steps"}
"""The hyper-parameter that holds k, by target."""
MIN_TEST = 6
"""Minimum number of seeds for the signed-rank test; fewer cannot reach p ≤ .05."""
MIN_SEEDS = 5
"""Minimum number of seeds for ρ; with fewer, all signs are equal by chance with a probability of at least .125 (.0625
with 5)."""
ALPHA = 0.05


@dataclass(frozen=True)
class Estimate:
    """An estimate of ρ or of a difference.

    value: the estimate; None if undefined, in which case `reason` says why.
    interval: 95% interval from a percentile bootstrap over seeds; None if there is no value, or only a single seed.
    n: number of seeds on which all the compared arms have a value.
    """

    value: float | None
    interval: tuple[float, float] | None
    n: int
    reason: str = ""


@dataclass(frozen=True)
class SwitchPoint:
    """One value of k in a sweep.

    k: number of steps before the switch; infinite if the noise never ends.
    whole: whether no trial took more than k steps, so that no switch took place.
    """

    k: float
    arm: Arm
    whole: bool


@dataclass(frozen=True)
class Switching:
    """A sweep of k for one pair of optimizers A and B, or for one perturbed base, with everything else equal.

    first, then: names of A and B, i.e. the label of the pure arm if there is one, else the target and its settings.
    state: whether B starts without state (`reset`) or can continue from A's (`keep`); None for noise.
    points: the points of the sweep, by ascending k.
    pure_first, pure_then: the arms trained by A alone and by B alone. A missing arm is replaced with the end of the
        sweep at which A or B takes all steps, or with None if the sweep has no such end. pure_first is None for noise.
    metrics: the experiment's primary metrics that were measured.
    """

    kind: SwitchKind
    optimizer: str
    first: str
    then: str
    state: str | None
    points: tuple[SwitchPoint, ...]
    pure_first: Arm | None
    pure_then: Arm | None
    metrics: tuple[str, ...]

    @property
    def statistic(self) -> Statistic:
        return "rho" if self.kind == "switch" else "difference"

    @property
    def results(self) -> Results:
        return self.points[0].arm.results

    @property
    def label(self) -> str:
        """The optimizer's name in the suite and the settings of its variant other than k, e.g. `noisy eta=0.1`."""
        steps = STEP_SETTINGS[NOISE if self.kind == "noise" else SWITCH]
        parts = [part for part in self.points[0].arm.variant.split(",") if not part.startswith(f"{steps}=")]
        return " ".join([self.optimizer, *(part for part in [",".join(parts)] if part not in ("", "default"))])

    @property
    def place(self) -> tuple[str, str]:
        """Experiment and model."""
        return self.points[0].arm.experiment, self.points[0].arm.model

    def estimate(self, point: SwitchPoint, metric: str) -> Estimate:
        """Return ρ for a switch, or the difference from the pure arm for a control or noise."""
        return self._estimates[point.k, metric]

    @functools.cached_property
    def _estimates(self) -> dict[tuple[float, str], Estimate]:
        return {(point.k, metric): self._estimate(point, metric) for point in self.points for metric in self.metrics}

    def _estimate(self, point: SwitchPoint, metric: str) -> Estimate:
        first = {self.first: self.pure_first} if self.kind == "switch" else {}
        needed = {**first, self.then: self.pure_then}
        missing = [name for name, arm in needed.items() if arm is None]
        if missing:
            return Estimate(None, None, 0, f"no arm uses {' or '.join(missing)} alone")
        pure = [arm for arm in needed.values() if arm is not None]
        values = shared_values([point.arm, *pure], metric)
        if not values.shape[1]:
            return Estimate(None, None, 0, "no seed has a value in every arm")
        if self.kind == "switch":
            return rho(values[0], values[1], values[2], (self.first, self.then))
        return difference(values[0], values[1])

    def barrier(self, point: SwitchPoint, to: Side) -> Estimate | None:
        """Return the loss barrier between a point's arm and pure A (`first`) or pure B (`then`), averaged over seeds.

        Return None if it was not measured, if there is no pure arm, or if the pure arm is the point's own arm.
        """
        pure = self.pure_first if to == "first" else self.pure_then
        if pure is None or pure is point.arm:
            return None
        found = np.array(Between.of(point.arm, pure).values("loss_barrier"))
        found = found[np.isfinite(found)]
        return difference(found, np.zeros(len(found))) if len(found) else None


def switchings(results: Results) -> list[Switching]:
    """Return every switch in a run, and every optimizer whose number of noisy steps is swept, in suite order."""
    everything = arms(results)
    grouped: dict[tuple[str, ...], list[Arm]] = {}
    for arm in everything:
        trial = _trial(arm)
        if steps_setting(arm) is not None:
            rest = {name: v for name, v in trial.hyperparameters.items() if name != STEP_SETTINGS[trial.target]}
            key = (arm.experiment, arm.model, arm.optimizer, json.dumps(rest, sort_keys=True))
            grouped.setdefault(key, []).append(arm)
    # noise over a single number of steps, usually all of them, is not a sweep of k
    asked = [found for found in grouped.values() if len(found) > 1 or _trial(found[0]).target == SWITCH]
    return [_switching(found, everything) for found in asked]


def steps_setting(arm: Arm) -> str | None:
    """Return the name of the hyper-parameter that holds k; None if the optimizer is neither switched nor perturbed.

    Also return None if the value of k is neither a number nor null, which is possible in a run made elsewhere.
    """
    trial = _trial(arm)
    name = STEP_SETTINGS.get(trial.target)
    return name if isinstance(trial.hyperparameters.get(name or "", ...), int | float | None) else None


def rho(switched: Array, first: Array, then: Array, names: tuple[str, str] = ("A", "B")) -> Estimate:
    """Compute ρ(k) = (m_AB(k) - m_B)/(m_A - m_B), a ratio of means: 0 for B's solution, 1 for A's.

    switched, first, then: values of a metric on the same seeds, (n,), n > 0.
    names: names of A and B, for use in `Estimate.reason`.

    ρ is undefined unless A and B differ: their exact signed-rank test over the same seeds must have p ≤ .05,
    uncorrected. With five seeds, the smallest possible p is .0625, so all five must agree in sign instead; fewer are
    not sufficient. ρ is also undefined if m_A - m_B changes sign in any resample, because the distribution of the ratio
    is then practically unbounded (Fieller 1954).
    """
    n = len(switched)
    a_and_b = " and ".join(names)
    if n < MIN_SEEDS:
        return Estimate(None, None, n, f"{count(n, 'seed')} cannot show whether {a_and_b} differ; {MIN_SEEDS} can")
    d = round_differences(first - then, float(np.abs([first, then]).max(initial=1.0)))
    if n < MIN_TEST:
        if not (np.all(d > 0) or np.all(d < 0)):
            return Estimate(None, None, n, f"{a_and_b} do not differ: the {count(n, 'seed')} disagree in sign")
    elif (p := signed_rank_test(d).p) > ALPHA:
        return Estimate(None, None, n, f"{a_and_b} do not differ (signed-rank p = {p:.2g}, {count(n, 'seed')})")
    above, gap = resampled_means(np.stack([switched - then, d]))  # each (B,)
    if not np.all(gap * d.mean() > 0):
        return Estimate(None, None, n, f"{a_and_b} hardly differ: their difference changes sign in some resamples")
    return Estimate(float((switched - then).mean() / d.mean()), percentile_interval(above / gap), n)


def difference(values: Array, pure: Array) -> Estimate:
    """Return the mean of `values - pure`, both (n,) on the same seeds, n > 0. A single seed gives no interval."""
    d = round_differences(values - pure, float(np.abs([values, pure]).max(initial=1.0)))
    return Estimate(float(d.mean()), percentile_interval(resampled_means(d)) if len(d) > 1 else None, len(d))


def shared_values(found: Sequence[Arm], metric: str) -> Array:
    """Return the final values of a metric, (arms, n), on seeds with an `ok` trial and a finite value in every arm."""
    seeds = [seed for seed in found[0].trials if all(arm.status(seed) == "ok" for arm in found)]
    values = np.array([[arm.value(metric, seed) for seed in seeds] for arm in found], np.float64)
    return values[:, np.isfinite(values).all(axis=0)]


def _switching(found: Sequence[Arm], everything: Sequence[Arm]) -> Switching:
    trial = _trial(found[0])
    settings = trial.hyperparameters
    for arm in found:  # the run's suite may have been edited since the run
        registry.check_settings(trial.target, _trial(arm).hyperparameters)
    points = tuple(sorted((_point(arm) for arm in found), key=lambda point: point.k))
    neighbours = [arm for arm in everything if (arm.experiment, arm.model) == (found[0].experiment, found[0].model)]
    metrics = tuple(
        name for name in found[0].settings.primary or PRIMARY_METRICS if any(arm.took(name) for arm in found)
    )
    if trial.target == NOISE:
        base = _optimizer(NOISE, settings["base"])
        pure = _pure(base, neighbours)
        name = _name(base, pure)
        return Switching("noise", found[0].optimizer, f"{name} with noise", name, None, points, None, pure, metrics)
    one, other = _optimizer(SWITCH, settings["first"]), _optimizer(SWITCH, settings["then"])
    named_first, named_then = _pure(one, neighbours), _pure(other, neighbours)
    # if there is no arm of A or B alone, an end of the sweep replaces it
    at_all = next((point.arm for point in reversed(points) if point.whole), None)
    at_none = next((point.arm for point in points if point.k == 0), None)
    first, then = named_first or at_all, named_then or at_none
    kind: SwitchKind = "switch"
    if one == other:
        kind, first, then = "control", first or then, then or first
    names = _name(one, named_first), _name(other, named_then)
    state = settings.get("state")
    return Switching(kind, found[0].optimizer, *names, state, points, first, then, metrics)


def _point(arm: Arm) -> SwitchPoint:
    trial = _trial(arm)
    given = trial.hyperparameters[STEP_SETTINGS[trial.target]]
    k: float = math.inf if given is None else given
    rows = [arm.results.rows[trial.id] for seed, trial in arm.trials.items() if arm.status(seed) == "ok"]
    taken = max((row.steps for row in rows), default=math.inf)
    return SwitchPoint(k, arm, k >= taken)


def _pure(optimizer: tuple[str, Mapping[str, Any]], neighbours: Iterable[Arm]) -> Arm | None:
    found = ((arm, _trial(arm)) for arm in neighbours)
    return next((arm for arm, trial in found if (trial.target, dict(trial.hyperparameters)) == optimizer), None)


def _optimizer(wrapper: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    target, given = registry.base_settings(wrapper, settings)
    return target, registry.complete(target, given)


def _name(optimizer: tuple[str, Mapping[str, Any]], pure: Arm | None) -> str:
    """Return the label of an optimizer's pure arm.

    Without a pure arm, return the target and all settings that differ from the defaults, e.g. `adam lr=0.01`.
    """
    if pure is not None:
        return pure.label
    target, settings = optimizer
    usual = registry.complete(target, {})
    return " ".join([target, *(f"{k}={value_name(v)}" for k, v in settings.items() if usual.get(k, ...) != v)])


def _trial(arm: Arm) -> Trial:
    """Return one of an arm's trials, which differ only in their seed."""
    return next(iter(arm.trials.values()))
