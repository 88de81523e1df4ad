"""How far a run is, as plain numbers: fed with the engine's events, read by the views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optbench.execution.schedule import Plan
from optbench.plan import Trial, expected_cost, trainings
from optbench.store.tables import TrialRow

if TYPE_CHECKING:
    from optbench.engine import Progress

ENOUGH = 0.02
"""Before this share of the work is done, a guess at the time left would mislead more than help."""


@dataclass
class TrialGroup:
    """The trials of one experiment, model and optimizer."""

    name: tuple[str, str, str]
    total: int
    tasks: int
    """T, how many tasks each trial has."""
    done: int = 0
    diverged: int = 0
    failed: int = 0
    training: dict[str, Progress] = field(default_factory=dict)
    """The last news of every trial that has begun and is not finished."""

    @property
    def slowest(self) -> Progress | None:
        """The trial in training that has come least far."""
        return min(self.training.values(), key=lambda news: news.fraction, default=None)

    @property
    def accuracy(self) -> float | None:
        """Mean held-out accuracy of the trials in training, each on its current task."""
        known = [news.accuracy for news in self.training.values() if news.accuracy is not None]
        return sum(known) / len(known) if known else None


class Tracker:
    """Counts what is done of a plan, in all and by group, and guesses the time left."""

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._group_of: dict[str, TrialGroup] = {}
        self._fraction: dict[str, float] = {}
        """Of every trial that this run has to train, how much is done, 0..1."""
        self._cost: dict[str, float] = {}
        """Likewise: its share of what its training is expected to cost."""
        groups: dict[tuple[str, str, str], TrialGroup] = {}
        for trial in plan.trials:
            key = (trial.experiment, trial.model, trial.optimizer)
            group = groups.setdefault(key, TrialGroup(key, 0, plan.outlines[trial.experiment].count))
            group.total += 1
            self._group_of[trial.id] = group
            if trial.id in plan.done:
                group.done += 1
            else:
                self._fraction[trial.id] = 0.0
        for equal in trainings(trial for trial in plan.trials if trial.id not in plan.done):
            name = equal[0].experiment
            cost = expected_cost(equal[0], plan.suite.experiments[name], plan.outlines[name])
            self._cost |= {trial.id: cost / len(equal) for trial in equal}
        self.groups = tuple(groups.values())
        self.total = len(plan.trials)

    def progress(self, news: Progress) -> None:
        """Take note of one trial's progress. A trial whose worker died and that began anew falls back."""
        self._group_of[news.trial].training[news.trial] = news
        self._fraction[news.trial] = news.fraction

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        """Take note of a cohort's end."""
        for trial, row in rows:
            group = self._group_of[trial.id]
            group.training.pop(trial.id, None)
            group.done += 1
            group.diverged += row.status == "diverged"
            group.failed += row.status == "failed"
            self._fraction[trial.id] = 1.0

    @property
    def done(self) -> int:
        """Finished trials, those of an earlier part of the run included."""
        return sum(group.done for group in self.groups)

    @property
    def fraction(self) -> float:
        """How much of what this run has to train is done, 0..1, trials weighing what they are expected to cost."""
        total = sum(self._cost.values())
        return sum(self._fraction[trial] * cost for trial, cost in self._cost.items()) / total if total else 1.0

    @property
    def elapsed(self) -> float:
        """Seconds since the training began."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds left if the rest goes as fast as what is done; None when it is too early to say."""
        fraction = self.fraction
        return self.elapsed * (1 - fraction) / fraction if fraction >= ENOUGH else None


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `1 h 20 min`: as exact as a guess deserves."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
