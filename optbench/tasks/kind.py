"""What one kind of task sequence has to say; `TaskFamily` does the rest."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol

from optbench.tasks.examples import Examples, Part


class TaskKind(Protocol):
    """The tasks of one experiment, for every trial seed.

    Whatever it draws comes from the suite seed, the trial seed and a purpose; never from the optimizer.
    """

    names: list[str]
    """One name per task, for tables; where tasks differ from seed to seed, a name that holds for all."""

    def key(self, trial_seed: int, task: int) -> Hashable:
        """What the arrays of task `task` (from 0) depend on: equal keys, equal arrays."""

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        """Makes the arrays of one part of a task."""

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield trial seed, task (from 0) and its number of training examples; of tasks that must agree, one will do.

        Makes no arrays.
        """

    def keeps(self, key: Hashable) -> bool:
        """Whether the arrays are to be held for the family's life; else for as long as somebody uses them."""
