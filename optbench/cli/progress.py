"""Progress of a run as plain numbers, updated by the engine's events and read by views."""

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
"""Fraction of the work that must be done for a useful estimate of the remaining time."""


@dataclass
class TrialGroup:
    """The trials of one experiment, model and optimizer."""

    name: tuple[str, str, str]
    total: int
    tasks: int
    """T, the number of tasks per trial."""
    done: int = 0
    diverged: int = 0
    failed: int = 0
    training: dict[str, Progress] = field(default_factory=dict)
    """The latest progress of each trial in training, by trial id."""

    @property
    def slowest(self) -> Progress | None:
        """The progress of the trial in training that has advanced least; None if no trial is in training."""
        return min(self.training.values(), key=lambda news: news.fraction, default=None)

    @property
    def accuracy(self) -> float | None:
        """Mean held-out accuracy of the trials in training, each on its current task; None if no accuracy is known."""
        known = [news.accuracy for news in self.training.values() if news.accuracy is not None]
        return sum(known) / len(known) if known else None


class Tracker:
    """The progress of a plan, in total and by group, and an estimate of the remaining time."""

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._group_of: dict[str, TrialGroup] = {}
        self._fraction: dict[str, float] = {}
        """Fraction done, 0..1, of each trial that this run trains, by trial id."""
        self._cost: dict[str, float] = {}
        """Expected cost of each trial that this run trains, by trial id."""
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
        """Record one trial's progress, which decreases if its worker died and the trial was restarted."""
        self._group_of[news.trial].training[news.trial] = news
        self._fraction[news.trial] = news.fraction

    def finished(self, rows: Sequence[tuple[Trial, TrialRow]]) -> None:
        """Record the end of a cohort."""
        for trial, row in rows:
            group = self._group_of[trial.id]
            group.training.pop(trial.id, None)
            group.done += 1
            group.diverged += row.status == "diverged"
            group.failed += row.status == "failed"
            self._fraction[trial.id] = 1.0

    @property
    def done(self) -> int:
        """Number of finished trials, including those finished before the run was resumed."""
        return sum(group.done for group in self.groups)

    @property
    def fraction(self) -> float:
        """Fraction of this run's work that is done, 0..1, weighted by expected cost."""
        total = sum(self._cost.values())
        return sum(self._fraction[trial] * cost for trial, cost in self._cost.items()) / total if total else 1.0

    @property
    def elapsed(self) -> float:
        """Seconds since training began."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Estimated remaining seconds at the speed so far; None if it is too early to estimate."""
        fraction = self.fraction
        return self.elapsed * (1 - fraction) / fraction if fraction >= ENOUGH else None


def duration(seconds: float) -> str:
    """Format a rough duration, e.g. `12 s`, `3 min` or `1 h 20 min`."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
