"""An optimizer's standing: each strip compared with the panel, verdicts against the references, and neighbours.

Verdicts are reached as in every comparison: exact signed-rank tests over common seeds, Holm's correction over the 16
strips, and a margin below which a difference does not matter. If a metric defines no margin, the margin is a tenth of
the panel's interquartile range.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optbench.counting import count
from optbench.stats.paired import PairedResult, PairedValues, compare_paired
from optbench.stats.power import ALPHA, seeds_needed, smallest_holm_p
from optbench.stats.signed_rank import bounds, middle, walsh_averages
from optbench.stats.verdict import DIFFERENT, Judgement, Question, Verdict, judge
from optbench.studies.fingerprint.entry import LEARNT, Array, Entry, Trials
from optbench.studies.fingerprint.neighbours import Neighbour, neighbours
from optbench.studies.fingerprint.panel import REFERENCES, Panel, check_seeds
from optbench.studies.fingerprint.strips import EXPERIMENTS, STRIPS, TASKS, Strip

CHANCE = 0.1
"""The accuracy of guessing one of ten digits."""
LEAST_LEARNT = 0.5
"""Minimum accuracy above chance for an experiment to count as learnt, as a share of the panel's median accuracy above
chance."""
PART_OF_SPREAD = 0.1
"""The margin for a metric that defines none, as a share of the panel's interquartile range."""
SAME = frozenset({Verdict.EQUIVALENT, Verdict.BELOW_MARGIN})
"""Verdicts that state that no difference exceeds the margin."""
UNTRAINED = frozenset({"failed", "missing"})
"""States of trials about which nothing is known, not even the initial weights."""


@dataclass(frozen=True)
class Tick:
    """One optimizer of the panel on a strip. centre: the centre of its values, as defined in `Standing`."""

    name: str
    centre: float


@dataclass(frozen=True)
class Judged:
    """The comparison with another optimizer on a strip.

    identical: whether the values of both optimizers agree bit for bit on every seed.
    """

    strip: Strip
    other: str
    result: PairedResult
    judgement: Judgement
    identical: bool

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def differs(self) -> bool:
        return self.verdict in DIFFERENT

    @property
    def same(self) -> bool:
        return self.verdict in SAME


@dataclass(frozen=True)
class Standing:
    """The optimizer's value on one strip, and the panel's values.

    centre: pseudo-median over seeds (Hodges & Lehmann 1963); None unless more than half of the seeds have values.
    interval: 95% interval of the centre; None with fewer than six values.
    n: number of seeds that have values.
    ticks: the panel's optimizers that have a centre.
    below: number of ticks below the centre.
    obstacle: why there is no centre; empty if there is one.
    """

    strip: Strip
    centre: float | None
    interval: tuple[float, float] | None
    n: int
    ticks: tuple[Tick, ...]
    below: int
    obstacle: str


@dataclass(frozen=True)
class Fingerprint:
    """The content of a page. remarks: caveats for the reader."""

    entry: Entry
    panel: Panel
    standings: tuple[Standing, ...]
    judged: Mapping[str, tuple[Judged, ...]]
    """The comparisons with each of the panel's optimizers on all strips, by name; empty if there are too few seeds."""
    neighbours: tuple[Neighbour, ...]
    not_learnt: Mapping[str, str]
    """The experiments that were not learnt, each with a description of what happened instead."""
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def seeds(self) -> int:
        return len(self.entry.seeds)

    @property
    def has_verdicts(self) -> bool:
        """Whether there are enough seeds for verdicts."""
        return bool(self.judged)

    @property
    def references(self) -> tuple[tuple[Judged, ...], ...]:
        """The comparisons with each reference (AdamW and SGD) on all strips; empty if there are too few seeds."""
        return tuple(self.judged[name] for name in REFERENCES if name in self.judged)

    @property
    def seeds_for_verdicts(self) -> int:
        """The smallest number of seeds that can show a difference after correction over all strips."""
        return seeds_needed(len(STRIPS))

    def same_strips(self, other: str) -> int:
        """Return the number of strips on which the verdict against `other`, an optimizer of the panel, is in `SAME`."""
        return sum(one.same for one in self.judged[other])


def fingerprint(entry: Entry, panel: Panel, remarks: Sequence[str] = (), *, apart: str | None = None) -> Fingerprint:
    """Compare an entry with the panel, on the entry's seeds.

    remarks: caveats to show before those that this function adds.
    apart: name of an optimizer to omit from the neighbours; pass the entry's own name if it is in the panel.

    Raises:
        UsageError: the entry has a seed that the panel does not have.
    """
    check_seeds(panel, entry.seeds, entry.name)
    panel = panel.on(entry.seeds)
    mine, not_learnt, partly = _learnt(entry, _thresholds(panel))
    learnt = learnt_only(panel).entries
    stacked = np.stack([one.values for one in learnt])
    standings = tuple(
        _standing(i, strip, mine, learnt, not_learnt.get(strip.experiment, "")) for i, strip in enumerate(STRIPS)
    )
    margins = [_margin(strip, standings[i]) for i, strip in enumerate(STRIPS)]
    judged = {}
    if smallest_holm_p(len(entry.seeds), len(STRIPS)) <= ALPHA:
        judged = {one.name: _judged(mine, one, margins, not_learnt) for one in learnt}
    found = neighbours(mine.values, stacked, panel.names, apart)
    first = panel.entries[0]  # all entries of the panel have the same initial weights
    elsewhere = [name for name in EXPERIMENTS if not _starts_alike(entry.trials[name], first.trials[name])]
    said = [*remarks, *(f"{on(name)}, it {what}; these seeds have no values there." for name, what in partly.items())]
    if (not_learnt or partly) and (tuning := entry.tuning) is not None:
        rates = f"optbench report {shlex.quote(str(tuning.path))}"
        said.append(f"Its learning rates were tuned on {count(tuning.seeds, 'seed')}; {rates} shows what was tried.")
    if elsewhere:
        said.append(
            f"Its initial weights differ from the panel's on {', '.join(elsewhere)}, so seeds cannot be paired and "
            "there are no verdicts there."
        )
    return Fingerprint(entry, panel, standings, judged, tuple(found), not_learnt, tuple(said))


def on(experiment: str) -> str:
    """Return the beginning of a sentence about an experiment, e.g. `On pairs (pairs of MNIST digits)`."""
    return f"On {experiment} ({TASKS[experiment]})"


def learnt_only(panel: Panel) -> Panel:
    """Return the panel without the values of optimizers on experiments that they did not learn.

    Distances between optimizers are computed from this panel.
    """
    thresholds = _thresholds(panel)
    return replace(panel, entries=tuple(_learnt(one, thresholds)[0] for one in panel.entries))


def _thresholds(panel: Panel) -> dict[str, float]:
    return {name: _threshold(panel, name) for name in EXPERIMENTS}


def _threshold(panel: Panel, experiment: str) -> float:
    """Return the minimum accuracy for an experiment to count as learnt; NaN if a target loss decides this instead."""
    means = [float(np.nanmean(v)) for e in panel.entries if np.isfinite(v := e.trials[experiment].learnt).any()]
    return CHANCE + LEAST_LEARNT * (float(np.median(means)) - CHANCE) if means else math.nan


def _learnt(entry: Entry, thresholds: Mapping[str, float]) -> tuple[Entry, dict[str, str], dict[str, str]]:
    """Remove an entry's values on experiments that were not learnt.

    If at least half of the seeds did not learn an experiment, all its values are removed; otherwise, only the values of
    the seeds that did not learn it.

    Return the entry and two mappings from experiments to what happened on them (see `_what_happened`): the first for
    experiments that lost all their values, the second for experiments that lost only some.
    """
    values = entry.values.copy()
    why: dict[str, str] = {}
    partly: dict[str, str] = {}
    n = len(entry.seeds)
    for experiment in EXPERIMENTS:
        trials, needed = entry.trials[experiment], thresholds[experiment]
        ended = np.array([state == "ok" for state in trials.states])
        low = ended & ~(trials.learnt >= needed) & (not math.isnan(needed))
        bad = low | ~ended
        rows = [i for i, strip in enumerate(STRIPS) if strip.experiment == experiment]
        if not bad.any():
            continue
        most = bad.sum() * 2 >= n
        values[np.array(rows)[:, None], np.arange(n) if most else np.flatnonzero(bad)] = np.nan
        (why if most else partly)[experiment] = _what_happened(
            trials.states, LEARNT.get(experiment, ""), trials.learnt[low], needed
        )
    return replace(entry, values=values), why, partly


def _what_happened(states: Sequence[str], accuracy: str, learnt: Array, needed: float) -> str:
    """Describe what happened, e.g. `has not learnt on 2 of 10 seeds: its test accuracy is 0.1, expected at least 0.5`.

    accuracy: what `learnt` measures, in words. learnt: the accuracy on each `ok` seed that does not reach `needed`.
    """
    n = len(states)
    parts = []
    if len(learnt):
        parts.append(
            f"has not learnt on {len(learnt)} of {count(n, 'seed')}: its {accuracy} is {learnt.mean():.3f}, "
            f"expected at least {needed:.3f}"
        )
    for state, said in (
        ("diverged", "diverged"),
        ("above_target", "did not reach the target training loss"),
        ("failed", "failed"),
        ("missing", "was not trained"),
    ):
        if number := sum(one == state for one in states):
            parts.append(f"{said} on {number} of {count(n, 'seed')}")
    return "; ".join(parts)


def _starts_alike(one: Trials, other: Trials) -> bool:
    """Return whether the trials of two optimizers start from the same weights on every seed.

    Seeds on which either trial failed or is missing are ignored.
    """
    pairs = zip(one.states, other.states, one.starts, other.starts, strict=True)
    return all(a == b for state, state_b, a, b in pairs if not UNTRAINED & {state, state_b})


def _standing(i: int, strip: Strip, mine: Entry, panel: Sequence[Entry], obstacle: str) -> Standing:
    ticks = tuple(Tick(one.name, centre) for one in panel if (centre := _centre(one.values[i])) is not None)
    known = mine.values[i][np.isfinite(mine.values[i])]
    centre = None if obstacle else _centre(known)
    averages = walsh_averages(known)
    ends = bounds(averages, len(known), 0.95) if centre is not None else None
    below = sum(tick.centre < centre for tick in ticks) if centre is not None else 0
    undefined = obstacle or ("" if centre is not None else "undefined")
    return Standing(strip, centre, ends, len(known), ticks, below, undefined)


def _centre(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return middle(walsh_averages(known)) if len(known) * 2 > len(values) else None


def _margin(strip: Strip, standing: Standing) -> float:
    if strip.of.margin:
        return strip.of.margin
    if not standing.ticks:
        return 0.0
    low, high = np.quantile([tick.centre for tick in standing.ticks], [0.25, 0.75]).tolist()
    return float(PART_OF_SPREAD * (high - low))


def _judged(mine: Entry, other: Entry, margins: Sequence[float], not_learnt: Mapping[str, str]) -> tuple[Judged, ...]:
    results, questions = [], []
    for i, strip in enumerate(STRIPS):
        a, b = mine.trials[strip.experiment], other.trials[strip.experiment]
        diverged = [np.array([state == "diverged" for state in one.states]) for one in (a, b)]
        result = compare_paired(PairedValues(mine.values[i], other.values[i], *diverged), strip.of.direction)
        learnt = strip.experiment not in not_learnt
        reason = f"{mine.name} {not_learnt[strip.experiment]}" if not learnt else "initial weights differ"
        results.append(result)
        questions.append(Question(result, strip.of.direction, margins[i], learnt and _starts_alike(a, b), reason))
    return tuple(
        Judged(
            strip,
            other.name,
            result,
            judgement,
            bool(np.array_equal(mine.values[i], other.values[i]) and np.isfinite(mine.values[i]).any()),
        )
        for i, (strip, result, judgement) in enumerate(zip(STRIPS, results, judge(questions), strict=True))
    )
