"""The rows of the table `online`: how a trial learnt each task, and the network's state before the task."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optbench.engine.before_task import BeforeTask, before_task, probe
from optbench.engine.evaluate import Evaluator
from optbench.engine.members import Member
from optbench.store.tables import OnlineRow
from optbench.tasks import Examples, TaskSequence


@dataclass
class _Steps:
    """The results of one member's steps in one task."""

    before: BeforeTask
    begun: int
    """Number of optimizer steps before this task."""
    accuracies: list[float] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)


class Online:
    """Collects the rows of the table `online` for one cohort, from states before tasks and from training batches."""

    def __init__(self, evaluator: Evaluator, sequences: Mapping[int, TaskSequence], suite_seed: int) -> None:
        """sequences: the task sequence of each trial seed."""
        self._evaluator = evaluator
        self._sequences = sequences
        self._suite_seed = suite_seed
        self._steps: dict[str, _Steps] = {}

    def begin(self, members: Sequence[Member], task: int) -> None:
        """Measure all running members before `task`, 0..T-1; a member fails if its model raises an exception."""
        self._steps = {}
        probes: dict[int, Examples] = {}
        for member in members:
            if not member.running:
                continue
            started, seed = time.perf_counter(), member.trial.seed
            if seed not in probes:
                probes[seed] = probe(self._sequences[seed].train(task), self._suite_seed)
            try:
                before = before_task(self._evaluator, member.row, probes[seed])
                self._steps[member.trial.id] = _Steps(before, member.steps)
            except Exception as error:
                if not self._evaluator.blueprint.answers_for(error):
                    raise
                member.fail(error)
            member.evaluation_seconds += time.perf_counter() - started

    def see(self, member: Member, losses: Sequence[float], accuracies: Sequence[float]) -> None:
        """Record a member's losses and accuracies on its batches, each measured before the update."""
        steps = self._steps[member.trial.id]
        steps.losses += losses
        steps.accuracies += accuracies

    def end(self, members: Sequence[Member], task: int) -> None:
        """Append the row of `task`, 0..T-1, to every member that began the task."""
        for member in members:
            if (steps := self._steps.get(member.trial.id)) is not None:
                member.rows.append(_row(member, task, steps))


def _row(member: Member, task: int, steps: _Steps) -> OnlineRow:
    """Return the row of `task` for a member, without accuracy and loss if the member did not finish the task."""
    state = dataclasses.asdict(steps.before)
    notes = [state.pop("note"), None if member.running else f"{member.status} in this task"]
    return OnlineRow(
        task=task + 1,
        steps=member.steps - steps.begun,
        online_accuracy=_mean(steps.accuracies) if member.running else None,
        online_loss=_mean(steps.losses) if member.running else None,
        **state,
        note="; ".join(filter(None, notes)) or None,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
