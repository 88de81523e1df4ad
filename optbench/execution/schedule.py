"""What a run will train, decided before anything is trained, and in which pieces it is given to processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optbench.counting import count
from optbench.errors import UsageError
from optbench.plan import Cohort, PairedSolutions, Trial, cohorts, comparisons, complete, expected_cost, outline, trials
from optbench.store.interim import Begun, find_begun
from optbench.store.pairs_table import is_settled, settled_pairs
from optbench.store.parts import INTERIM
from optbench.store.read import done_trials, read_run
from optbench.suite import Suite, load_suite, suite_hash
from optbench.tasks import Outline


@dataclass(frozen=True)
class Plan:
    """What a run will train, decided before anything is trained."""

    suite: Suite
    trials: tuple[Trial, ...]
    cohorts: tuple[Cohort, ...]
    """Whole cohorts, before they are spread over processes."""
    done: frozenset[str]
    """Trials that an earlier part of the run has finished."""
    comparisons: tuple[PairedSolutions, ...] = ()
    """What is left to compare of the solutions."""
    begun: Mapping[str, Begun] = field(default_factory=dict)
    """Where trials that had finished some of their tasks resume, by their ids; the others start over."""

    outlines: Mapping[str, Outline] = field(default_factory=dict)
    """What the tasks of each experiment are, as far as that is known."""

    @property
    def left(self) -> list[str]:
        """Ids of the trials to train."""
        return [trial.id for trial in self.trials if trial.id not in self.done]

    @property
    def controls(self) -> int:
        """How many of the trials are there for their data order alone."""
        return sum(trial.is_control for trial in self.trials)

    @property
    def count(self) -> str:
        """`30 trials`, or `30 trials and 10 controls`."""
        arms = len(self.trials) - self.controls
        return count(arms, "trial") + (f" and {count(self.controls, 'control')}" if self.controls else "")


def make_plan(suite: Suite, resume: Path | None = None, *, grown: bool = False, once_failed: bool = False) -> Plan:
    """The trials and cohorts of a suite, and which of them a run to be resumed has done already. Runs no user code.

    grown: the suite may differ from the run's own, by more or fewer settings. once_failed: what has failed is done,
    too.
    """
    suite = complete(suite)
    all_trials = trials(suite)
    done: set[str] = set()
    settled: set[tuple[str, str]] = set()
    begun: dict[str, Begun] = {}
    if resume is not None:
        recorded = load_suite(resume / "suite.yaml", as_written=True)
        if not grown and suite_hash(recorded) != suite_hash(suite):
            raise UsageError(f"--resume {resume}: that run was made from another suite, or other settings of this one")
        run = read_run(resume)
        table = run.table("trials")
        done = set(table["trial"].to_pylist()) if once_failed else done_trials(table)
        settled = settled_pairs(run.pairs)
        begun = find_begun(resume / INTERIM)
    outlines = {name: outline(experiment) for name, experiment in suite.experiments.items()}
    left = [
        comparison
        for comparison in comparisons(suite, all_trials)
        if not (is_settled(comparison, settled) and all(trial.id in done for trial in comparison.trials))
    ]
    return Plan(suite, tuple(all_trials), tuple(cohorts(all_trials)), frozenset(done), tuple(left), begun, outlines)


MOST_ON_CPU = 8
"""So many trainings are given to a process of one thread at once. More would be no faster there, and a kill, or a last
process that is still busy, costs as much as was given at once."""


def spread(plan: Plan, jobs: int, most: int | None = None) -> list[Cohort]:
    """What is left of every cohort, cut so that all processes have work; the longest first, so that none ends late.

    Trials of a piece begin, or resume, after the same task. most: about so many trainings in a piece. None: as many as
    there are, as an accelerator is the better used the more it has at once; a cohort is cut only where there are fewer
    cohorts than processes.
    """
    wholes: list[tuple[int, Cohort]] = []  # with how many tasks they have finished
    for cohort in plan.cohorts:
        left = dataclasses.replace(cohort, trials=tuple(t for t in cohort.trials if t.id not in plan.done))
        wholes += _by_task(left, plan.begun).items()
    units: list[tuple[float, Cohort]] = []
    for finished, whole in wholes:
        experiment = plan.suite.experiments[whole.experiment]
        tasks = plan.outlines[whole.experiment]
        share = 1 - finished / tasks.count if tasks.count else 1.0
        rounds = math.ceil(len(whole.trainings) / (jobs * most)) if most else 0
        for piece in whole.split(jobs * rounds or math.ceil(jobs / len(wholes))):
            cost = share * sum(expected_cost(equal[0], experiment, tasks) for equal in piece.trainings)
            units.append((cost, piece))
    return [unit for _, unit in sorted(units, key=lambda pair: -pair[0])]


def goes_on(cohort: Cohort, begun: Mapping[str, Begun]) -> dict[str, Begun]:
    """Where the trials of a piece resume; empty if they start over, which all of them do if one has to."""
    found = {trial.id: begun[trial.id] for trial in cohort.trials if trial.id in begun}
    alike = len(found) == len(cohort.trials) and len({place.task for place in found.values()}) == 1
    return found if alike else {}


def _by_task(cohort: Cohort, begun: Mapping[str, Begun]) -> dict[int, Cohort]:
    """The trials of a cohort by how many tasks they have finished."""
    found: dict[int, list[Trial]] = {}
    for equal in cohort.trainings:
        # Trials that are one training resume together or not at all.
        places = {begun.get(trial.id) for trial in equal}
        place = places.pop() if len(places) == 1 else None
        found.setdefault(place.task if place else 0, []).extend(equal)
    order = {trial.id: i for i, trial in enumerate(cohort.trials)}
    return {
        task: dataclasses.replace(cohort, trials=tuple(sorted(members, key=lambda trial: order[trial.id])))
        for task, members in found.items()
    }
