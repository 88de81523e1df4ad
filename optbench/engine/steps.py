"""The number of steps in each of a trial's tasks, and learning rate schedules over these steps."""

from __future__ import annotations

from collections.abc import Mapping

from optbench.engine.members import Member, Schedule
from optbench.engine.rates import RateCurve
from optbench.suite.protocol import Protocol
from optbench.tasks import TaskSequence


class Steps:
    """The number of steps in each task if no task stops early. Counts are cached, because counting generates a task."""

    def __init__(self, protocol: Protocol, sequences: Mapping[int, TaskSequence], tasks: int) -> None:
        """sequences: the task sequence of each trial seed. tasks: T."""
        self._protocol, self._sequences, self._tasks = protocol, sequences, tasks
        self._counted: dict[tuple[int, int], int] = {}

    def of_task(self, trial_seed: int, task: int) -> int:
        """Return the number of steps in `task`, 0..T-1."""
        if (trial_seed, task) not in self._counted:
            per_epoch = len(self._sequences[trial_seed].train(task)) // self._protocol.batch_size
            self._counted[trial_seed, task] = Schedule.of(self._protocol, per_epoch).total
        return self._counted[trial_seed, task]

    def of_all(self, trial_seed: int) -> int:
        """Return the number of steps in all tasks together."""
        return sum(self.of_task(trial_seed, task) for task in range(self._tasks))

    def of_optimizer(self, member: Member, task: int, *, kept: bool) -> int:
        """Return the total number of steps of a member's optimizer.

        kept: True if the optimizer is kept from the first task on; False if it is constructed for `task`.
        """
        return self.of_all(member.trial.seed) if kept else self.of_task(member.trial.seed, task)

    def curve(self, member: Member, task: int) -> RateCurve | None:
        """Return a member's learning rate schedule in `task`, 0..T-1; None if the member has none."""
        schedule, seed = self._protocol.schedule, member.trial.seed
        if schedule is None or schedule.is_flat or member.trial.without_schedule is not None:
            return None
        if schedule.span == "task":
            return RateCurve(schedule, self.of_task(seed, task))
        return RateCurve(schedule, self.of_all(seed), member.steps)
