"""The sizes of pieces, each chosen when the piece is given to a worker, from the durations of finished trainings.

Until a training of the same kind has finished, pieces are those of `schedule.spread`. From then on, a piece on a CPU is
an even share of the remaining work (guided self-scheduling: Polychronopoulos & Kuck, IEEE Transactions on Computers
C-36, 1987), within these bounds:

- Short trainings are combined into at most about a minute of work, `MOST_SHORT` trainings and `MOST_PARAMETERS`
  parameters.
- Longer trainings are combined only up to `MOST_ON_CPU` trainings, because larger pieces would not be faster.
- A piece is not cut to less than about a minute of work or `MOST_ON_CPU` trainings, whichever is smaller.

Large pieces come first and small ones last, so that workers finish at about the same time. Results do not depend on the
sizes of pieces.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from optbench.execution.messages import Finished, Train, Unit
from optbench.execution.schedule import MOST_ON_CPU, Plan
from optbench.plan import Cohort, Trial, expected_cost
from optbench.store.tables import TrialRow

MINUTE = 60.0
"""Duration of a piece, in seconds, that is long compared with the time to hand it out and to write its results."""
MOST_SHORT = 64
"""Maximum number of trainings in a piece, however short they are."""
MOST_PARAMETERS = 16_000_000
"""Maximum total number of parameters in a piece of more than `MOST_ON_CPU` trainings. With gradients, optimizer states
and the best weights, these take about 500 MB."""


class Pace:
    """The durations of finished trainings, in seconds per unit of `plan.expected_cost`, and their parameter counts."""

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._cost: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._parameters: dict[tuple[str, ...], int] = {}

    def add(self, trial: Trial, cost: float, row: TrialRow) -> None:
        """Record a finished trial. cost: its expected cost. row: its results."""
        own = _kinds(trial)[0]
        self._parameters[own] = row.parameters
        for kind in _kinds(trial):
            self._seconds[kind] += row.train_seconds + (row.evaluation_seconds or 0.0)
            self._cost[kind] += cost

    def parameters(self, trial: Trial) -> int | None:
        """Return the parameter count of a trial.

        Return None if no trial with the same experiment, model and optimizer has finished.
        """
        return self._parameters.get(_kinds(trial)[0])

    def seconds(self, trial: Trial, cost: float) -> float | None:
        """Estimate how many seconds a trial of this cost takes; None if no trial has finished.

        The estimate uses the most similar finished trials: those with the same experiment, model and optimizer, else
        those with the same experiment and model, else all.
        """
        for kind in _kinds(trial):
            if kind in self._cost:
                return cost * self._seconds[kind] / self._cost[kind]
        return None


class Sizes:
    """A selector of the trainings in each piece, used when the piece is given to a worker.

    Legend: a *whole* consists of the remaining trainings of one cohort of the plan. They differ in seed and settings,
    and are expected to take the same time.
    """

    def __init__(self, plan: Plan, units: Sequence[Train], jobs: int, pace: Pace) -> None:
        """units: the pieces to hand out until trainings have been timed. pace: timings, to which new ones are added."""
        self._plan, self._jobs, self._pace = plan, jobs, pace
        self._order = {trial.id: i for i, trial in enumerate(plan.trials)}
        self._whole = {trial.id: i for i, cohort in enumerate(plan.cohorts) for trial in cohort.trials}
        self._new = {unit.id for unit in units}  # other units are retried unchanged
        self._left: Counter[int] = Counter()
        for unit in units:
            self._left[self._whole_of(unit)] += len(unit.cohort.trainings)
        self._first = {i: plan.cohorts[i].trials[0] for i in self._left}
        self._costs = {i: self._cost(trial) for i, trial in self._first.items()}

    def finished(self, event: Finished) -> None:
        """Record the durations of a cohort's trials, except diverged and failed ones, which end early."""
        for trial, row in event.rows:
            if isinstance(row, TrialRow) and row.status == "ok":
                self._pace.add(trial, self._cost(trial), row)

    def take(self, waiting: list[Unit], place: int) -> Unit:
        """Remove the unit at `place` from `waiting`, cut or extend it if its size should differ, and return it.

        waiting: the waiting units, of which the last is next. Units of the same whole are adjacent. Trainings that are
            cut off stay in `waiting`; trainings that are added are removed from it.
        """
        unit = waiting.pop(place)
        if not isinstance(unit, Train) or unit.id not in self._new:
            return unit
        whole = self._whole_of(unit)
        self._new.remove(unit.id)
        cohort = unit.cohort
        if not unit.begun and (wanted := self._wanted(whole, len(cohort.trainings))) is not None:
            while len(cohort.trainings) < wanted and place > 0 and self._extends(waiting[place - 1], whole):
                place -= 1
                cohort = self._joined(cohort, waiting.pop(place))
            cohort, *rest = cohort.cut(wanted)
            waiting[place:place] = [Train(piece, {}) for piece in rest]
            self._new.update(piece.id for piece in rest)
            unit = Train(cohort, {})
        self._left[whole] -= len(cohort.trainings)
        return unit

    def _wanted(self, whole: int, count: int) -> int | None:
        """Return how many trainings a piece of `count` trainings should have; None to leave the piece unchanged."""
        seconds = {other: self._pace.seconds(self._first[other], cost) for other, cost in self._costs.items()}
        each, parameters = seconds[whole], self._pace.parameters(self._first[whole])
        # Timings of other optimizers and models only serve to estimate the remaining work, because the ratio of
        # expected costs may be far off.
        if not (each and parameters):
            return None
        enough = max(1, int(MINUTE / each))
        fitting = MOST_PARAMETERS // parameters
        most = max(MOST_ON_CPU, min(enough, MOST_SHORT, fitting))
        least = min(enough, MOST_ON_CPU, count)
        left = sum(self._left[other] * (its or 0.0) for other, its in seconds.items())
        wanted = min(max(round(left / (self._jobs * each)), least), most)
        # The whole is divided into pieces of equal size, so that no small piece is left over.
        return math.ceil(self._left[whole] / math.ceil(self._left[whole] / wanted))

    def _cost(self, trial: Trial) -> float:
        return expected_cost(
            trial, self._plan.suite.experiments[trial.experiment], self._plan.outlines[trial.experiment]
        )

    def _whole_of(self, unit: Train) -> int:
        return self._whole[unit.cohort.trials[0].id]

    def _extends(self, unit: Unit, whole: int) -> bool:
        if not isinstance(unit, Train) or unit.begun or unit.id not in self._new:
            return False
        return self._whole_of(unit) == whole

    def _joined(self, cohort: Cohort, unit: Unit) -> Cohort:
        assert isinstance(unit, Train), "only pieces of cohorts are joined"
        self._new.remove(unit.id)
        trials = sorted((*cohort.trials, *unit.cohort.trials), key=lambda trial: self._order[trial.id])
        return dataclasses.replace(cohort, optimizer=trials[0].optimizer, trials=tuple(trials))


def _kinds(trial: Trial) -> tuple[tuple[str, ...], ...]:
    """Return the keys under which a trial's time is recorded, from the most to the least specific.

    They stand for its experiment, model and optimizer; for its experiment and model; and for all trials.
    """
    model = (trial.experiment, trial.model)
    return (*model, trial.target), model, ()
