"""The plan of the trials to train and the comparisons to make, and the pieces into which cohorts are cut."""

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
    """The trials and comparisons of a run, and which of them remain, as determined before training."""

    suite: Suite
    trials: tuple[Trial, ...]
    cohorts: tuple[Cohort, ...]
    """Complete cohorts, before they are cut into pieces for workers."""
    done: frozenset[str]
    """Ids of the trials that were finished before the run was resumed."""
    comparisons: tuple[PairedSolutions, ...] = ()
    """The remaining comparisons of solutions."""
    begun: Mapping[str, Begun] = field(default_factory=dict)
    """The saved states of trials that have finished some of their tasks, by id; other trials start over."""

    outlines: Mapping[str, Outline] = field(default_factory=dict)
    """An outline of each experiment's tasks, as far as they are known, by experiment."""

    @property
    def left(self) -> list[str]:
        """The ids of the remaining trials."""
        return [trial.id for trial in self.trials if trial.id not in self.done]

    @property
    def controls(self) -> int:
        """The number of controls."""
        return sum(trial.is_control for trial in self.trials)

    @property
    def count(self) -> str:
        """The number of trials as text, e.g. `30 trials` or `30 trials and 10 controls`."""
        arms = len(self.trials) - self.controls
        return count(arms, "trial") + (f" and {count(self.controls, 'control')}" if self.controls else "")


def make_plan(suite: Suite, resume: Path | None = None, *, grown: bool = False, once_failed: bool = False) -> Plan:
    """Plan the trials and cohorts of a suite without running users' code.

    resume: the directory of a run whose finished trials are not trained again. grown: True to allow a suite that
        differs from the run's. once_failed: True to treat failed trials as finished.

    Raises:
        UsageError: the run was made from another suite, and `grown` is False.
    """
    suite = complete(suite)
    all_trials = trials(suite)
    done: set[str] = set()
    settled: set[tuple[str, str]] = set()
    begun: dict[str, Begun] = {}
    if resume is not None:
        recorded = load_suite(resume / "suite.yaml", as_written=True)
        if not grown and suite_hash(recorded) != suite_hash(suite):
            raise UsageError(f"--resume {resume}: this run was made from another suite, or with other suite settings")
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
"""Maximum number of members in a piece for a process with one thread. Larger pieces would not be faster there, but more
work would be lost if the process were killed, and the last process would finish later."""


def spread(plan: Plan, jobs: int, most: int | None = None) -> list[Cohort]:
    """Cut the remaining trials of every cohort into pieces, so that all processes have work.

    Within a piece, either all trials start over or all resume after the same task. The pieces of a cohort that resume
    after the same task form a group and are adjacent. The longest pieces come first in each group, and the groups with
    the longest pieces come first. `sizes` joins or cuts pieces once their duration can be estimated.

    most: the approximate maximum number of members in a piece. None means no maximum, which is best on an accelerator;
        cohorts are then cut only if there are fewer cohorts than processes.
    """
    wholes: list[tuple[int, Cohort]] = []  # with the number of finished tasks
    for cohort in plan.cohorts:
        left = dataclasses.replace(cohort, trials=tuple(t for t in cohort.trials if t.id not in plan.done))
        wholes += _by_task(left, plan.begun).items()
    units: list[tuple[float, list[Cohort]]] = []
    for finished, whole in wholes:
        experiment = plan.suite.experiments[whole.experiment]
        tasks = plan.outlines[whole.experiment]
        share = 1 - finished / tasks.count if tasks.count else 1.0
        rounds = math.ceil(len(whole.trainings) / (jobs * most)) if most else 0
        costs = [
            (share * sum(expected_cost(equal[0], experiment, tasks) for equal in piece.trainings), piece)
            for piece in whole.split(jobs * rounds or math.ceil(jobs / len(wholes)))
        ]
        if costs:
            costs.sort(key=lambda pair: -pair[0])
            units.append((costs[0][0], [piece for _, piece in costs]))
    return [piece for _, pieces in sorted(units, key=lambda pair: -pair[0]) for piece in pieces]


def goes_on(cohort: Cohort, begun: Mapping[str, Begun]) -> dict[str, Begun]:
    """Return the states from which the trials of a piece resume, by trial id.

    The mapping is empty if any trial must start over, or if the trials have finished different numbers of tasks.
    """
    found = {trial.id: begun[trial.id] for trial in cohort.trials if trial.id in begun}
    alike = len(found) == len(cohort.trials) and len({place.task for place in found.values()}) == 1
    return found if alike else {}


def _by_task(cohort: Cohort, begun: Mapping[str, Begun]) -> dict[int, Cohort]:
    """Group the trials of a cohort by the number of tasks that they have finished."""
    found: dict[int, list[Trial]] = {}
    for equal in cohort.trainings:
        # Trials that differ only in names are trained as one member, so they resume together or not at all.
        places = {begun.get(trial.id) for trial in equal}
        place = places.pop() if len(places) == 1 else None
        found.setdefault(place.task if place else 0, []).extend(equal)
    order = {trial.id: i for i, trial in enumerate(cohort.trials)}
    return {
        task: dataclasses.replace(cohort, trials=tuple(sorted(members, key=lambda trial: order[trial.id])))
        for task, members in found.items()
    }
