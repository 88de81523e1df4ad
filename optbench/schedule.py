"""What a run will train, decided before anything is trained, and in which pieces it is given to processes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from optbench.errors import UsageError
from optbench.plan import Cohort, Comparison, Trial, cohorts, comparisons, complete, expected_cost, trials
from optbench.store.pairs import is_settled, settled_pairs
from optbench.store.read import done_trials, read_run
from optbench.suite import Suite, load_suite, suite_hash


@dataclass(frozen=True)
class Plan:
    """What a run will train, decided before anything is trained."""

    suite: Suite
    trials: tuple[Trial, ...]
    cohorts: tuple[Cohort, ...]
    """Whole cohorts, before they are spread over processes."""
    done: frozenset[str]
    """Trials that an earlier part of the run has finished."""
    comparisons: tuple[Comparison, ...] = ()
    """What is left to compare of the solutions."""

    @property
    def controls(self) -> int:
        """How many of the trials are there for their data order alone."""
        return sum(trial.is_control for trial in self.trials)

    @property
    def count(self) -> str:
        """`30 trials`, or `30 trials and 10 controls`."""
        arms = len(self.trials) - self.controls
        return f"{arms} trials" + (f" and {self.controls} controls" if self.controls else "")


def make_plan(suite: Suite, resume: Path | None = None, *, grown: bool = False) -> Plan:
    """The trials and cohorts of a suite, and which of them a run to be resumed has done already. Runs no user code.

    grown: the suite may differ from the run's own, by more or fewer settings.
    """
    suite = complete(suite)
    all_trials = trials(suite)
    done: set[str] = set()
    settled: set[tuple[str, str]] = set()
    if resume is not None:
        recorded = load_suite(resume / "suite.yaml")
        if not grown and suite_hash(recorded) != suite_hash(suite):
            raise UsageError(f"--resume {resume}: that run was made from another suite, or other settings of this one")
        run = read_run(resume)
        done = done_trials(run.table("trials"))
        settled = settled_pairs(run.pairs)
    left = [
        comparison
        for comparison in comparisons(suite, all_trials)
        if not (is_settled(comparison, settled) and all(trial.id in done for trial in comparison.trials))
    ]
    return Plan(suite, tuple(all_trials), tuple(cohorts(all_trials)), frozenset(done), tuple(left))


MOST_ON_CPU = 8
"""So many trainings are given to a process of one thread at once. More would be no faster there, and a kill, or a last
process that is still busy, costs as much as was given at once."""


def spread(plan: Plan, jobs: int, most: int | None = None) -> list[Cohort]:
    """What is left of every cohort, cut so that all processes have work; the longest first, so that none ends late.

    most: about so many trainings in a piece; None: as many as there are.
    """
    units: list[tuple[float, Cohort]] = []
    for cohort in plan.cohorts:
        left = tuple(trial for trial in cohort.trials if trial.id not in plan.done)
        whole = dataclasses.replace(cohort, trials=left)
        rounds = math.ceil(len(whole.trainings) / (jobs * most)) if most else 1
        pieces = whole.split(jobs * rounds) if left else []
        experiment = plan.suite.experiments[cohort.experiment]
        units += [(sum(expected_cost(equal[0], experiment) for equal in piece.trainings), piece) for piece in pieces]
    return [unit for _, unit in sorted(units, key=lambda pair: -pair[0])]
