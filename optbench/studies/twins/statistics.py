"""Twins: the distance between the weights of two optimizers at every evaluation.

Distances are estimated from sketches of the weights (`optbench.metrics.sketch`), with a relative error of about
1/√(2K), where K is the length of a sketch.

Legend: `E` evaluations of a trial; `w₀` the weights before the first step. A *place* in training is a task, numbered
from 1, and a number of steps in that task.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from optbench.counting import count
from optbench.stats.arms import Arm, arms
from optbench.stats.results import Results
from optbench.store.columns import codes, numbers, vectors

Array: TypeAlias = NDArray[np.float64]
Moment: TypeAlias = tuple[int, int]
"""A place: a task, and a number of steps in that task."""
Distances: TypeAlias = Mapping[Moment, float]
"""Distances by place, in ascending order of the places; NaN where undefined."""

START: Moment = (1, 0)


@dataclass(frozen=True)
class Sketches:
    """The sketches of one trial. places: (E,), ascending. values: the sketch at each place, (E, K)."""

    places: tuple[Moment, ...]
    values: Array


@dataclass(frozen=True)
class Twins:
    """Two optimizers listed as twins in a suite, on one experiment and model.

    a, b: names of the optimizers. sides: the optimizers' arms; None unless each optimizer has exactly one.
    distances: the distances by seed, for every seed on which both trials are ok and have sketches at the start and at
        another common place.
    size: K; 0 if there are no distances. reason: why there are no distances; empty if there are some.
    """

    results: Results
    experiment: str
    model: str
    a: str
    b: str
    sides: tuple[Arm, Arm] | None
    distances: Mapping[int, Distances] = field(repr=False)
    size: int
    reason: str

    @property
    def label(self) -> str:
        return f"{self.a} and {self.b}"

    @property
    def planned(self) -> int:
        """Number of planned seeds."""
        return len(self.results.suite.seeds)

    @functools.cached_property
    def places(self) -> tuple[Moment, ...]:
        """Places at which any seed has a distance, ascending."""
        return tuple(sorted({place for found in self.distances.values() for place in found}))

    def at(self, place: Moment) -> list[float]:
        """Return the distances at a place, for all seeds that have one."""
        found = (distances.get(place, math.nan) for distances in self.distances.values())
        return [value for value in found if math.isfinite(value)]

    @property
    def last(self) -> list[float]:
        """Each seed's distance at the last place that the two trials have in common."""
        found = [distances[max(distances)] for distances in self.distances.values()]
        return [value for value in found if math.isfinite(value)]


def twins(results: Results) -> list[Twins]:
    """Return every pair of twins in a run's suite, on every model, in suite order.

    Raises:
        StoreError: the table of sketches is unreadable.
    """
    asked = {name: experiment for name, experiment in results.suite.experiments.items() if experiment.twins}
    if not asked:
        return []
    recorded = sketches(results)
    everything = arms(results)
    found = []
    for experiment, settings in asked.items():
        for model in settings.models:
            here = [arm for arm in everything if (arm.experiment, arm.model) == (experiment, model)]
            found += [_twins(results, (experiment, model), pair, here, recorded) for pair in settings.twins or ()]
    return found


def sketches(results: Results) -> dict[str, Sketches]:
    """Return the sketches of each trial, by trial id.

    Raises:
        StoreError: the table of sketches is unreadable.
    """
    table = results.run.table("sketches")
    trial, ids = codes(table["trial"])
    task, step = (numbers(table[name]).astype(np.int64) for name in ("task", "step"))
    values = vectors(table["sketch"])
    order = np.lexsort((step, task, trial))
    present, starts = np.unique(trial[order], return_index=True)
    found = {}
    for code, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=False):
        places = tuple(zip(task[rows].tolist(), step[rows].tolist(), strict=True))
        found[ids[code]] = Sketches(places, values[rows])
    return found


def distances(a: Sketches, b: Sketches) -> dict[Moment, float]:
    """Return 2 ‖a - b‖ / (‖a - w₀‖ + ‖b - w₀‖) at every common place after the start, ascending.

    The value is 0 for equal weights, √2 if both optimizers have moved equally far and at right angles, and at most 2;
    it is NaN if neither has moved. The metric `weight_distance` has the same definition, but only for solutions. Return
    an empty mapping if there is no such place, or a trial has no sketch of the start.
    """
    shared = sorted(set(a.places) & set(b.places) - {START})
    if not shared or START not in a.places or START not in b.places:
        return {}
    rows = [{place: i for i, place in enumerate(side.places)} for side in (a, b)]
    one, other = (
        side.values[[known[place] for place in (START, *shared)]] for side, known in zip((a, b), rows, strict=True)
    )
    ways = _norms(one[1:] - one[0]) + _norms(other[1:] - other[0])
    with np.errstate(invalid="ignore"):
        ratios = 2.0 * _norms(one[1:] - other[1:]) / ways
    return dict(zip(shared, ratios.tolist(), strict=True))


def evenly(places: Iterable[Moment], count: int) -> list[Moment]:
    """Select at most `count` (> 1) evenly spaced places, including the first and the last.

    Spacing is measured in evaluations rather than steps, because tasks may differ in their number of steps.
    """
    ordered = sorted(set(places))
    chosen = {round(i * (len(ordered) - 1) / (count - 1)) for i in range(count)} if ordered else set()
    return [ordered[i] for i in sorted(chosen)]


def _twins(
    results: Results,
    place: tuple[str, str],
    pair: list[str],
    here: list[Arm],
    recorded: Mapping[str, Sketches],
) -> Twins:
    a, b = pair
    sides = {name: [arm for arm in here if arm.optimizer == name] for name in pair}
    swept = [f"{name} has {count(len(found), 'setting')}" for name, found in sides.items() if len(found) != 1]
    if swept:
        return Twins(results, *place, a, b, None, {}, 0, f"{' and '.join(swept)}; twins need one each")
    one, other = sides[a][0], sides[b][0]
    ok = [seed for seed in one.trials if one.status(seed) == other.status(seed) == "ok"]
    trials = {seed: (one.trials[seed].id, other.trials[seed].id) for seed in ok}
    both = {seed: (recorded[x], recorded[y]) for seed, (x, y) in trials.items() if x in recorded and y in recorded}
    found = {seed: shared for seed, pair in both.items() if (shared := distances(*pair))}
    size = max((both[seed][0].values.shape[1] for seed in found), default=0)
    reason = "" if found else "no seed on which both trials are ok"
    if ok and not found:
        reason += " has sketches of both" + (" at the start and at a common evaluation after it" if both else "")
    return Twins(results, *place, a, b, (one, other), found, size, reason)


def _norms(rows: Array) -> Array:
    found: Array = np.linalg.norm(rows, axis=1)
    return found
