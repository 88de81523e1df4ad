"""The tasks of an experiment on a device, shared by all of its trials."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optbench.tasks.examples import Examples, Part, split_dataset
from optbench.tasks.kind import Tasks

if TYPE_CHECKING:
    import torch

    from optbench.data.dataset import Dataset
    from optbench.suite.protocol import Protocol
    from optbench.suite.schema import TaskSettings


class TaskFamily(Tasks):
    """The task sequences of all trials of one experiment, with one copy of the data on the device.

    Attributes:
        classes: the number of classes, which is the width of the single head.
        inputs: the form of one model input.
    """

    def __init__(
        self,
        settings: TaskSettings,
        dataset: Dataset,
        protocol: Protocol,
        suite_seed: int,
        device: torch.device,
    ) -> None:
        """Split the data, move it to the device and plan the tasks.

        Raises:
            UsageError: the protocol requests more examples than exist, or a task would have none.
            KindError: a user's kind violates the contract.
            Exception: any exception raised by a user's kind.
        """
        super().__init__(settings, split_dataset(dataset, protocol, suite_seed, device), suite_seed)
        self._mirrors = protocol.augment is not None and protocol.augment.flip
        self.classes = dataset.classes
        self.inputs = dataset.inputs
        self._kept: dict[tuple[Hashable, Part], Examples] = {}
        # A member's permuted copy of the data is large (47 MB for MNIST), so it is shared while in use, then released.
        self._in_use: weakref.WeakValueDictionary[tuple[Hashable, Part], Examples] = weakref.WeakValueDictionary()

    @property
    def count(self) -> int:
        """The number of tasks, T."""
        return self.outline.count

    @property
    def task_names(self) -> list[str]:
        """The name of each task, such as `permutation 1`, `classes 0,1`, `30 degrees`."""
        return list(self.outline.names)

    def sequence(self, trial_seed: int) -> TaskSequence:
        """Return the tasks of a trial seed; trials with this seed have the same tasks, whatever their optimizer."""
        return TaskSequence(self, trial_seed)

    def shared(self, trial_seed: int, task: int, part: Part) -> Examples:
        """Return the result of `examples`: the same object for an equal key and part, while it is still referenced."""
        assert 0 <= task < self.count, f"task {task} of {self.count}"
        key = self.key(trial_seed, task)
        place = (key, part)
        found = self._in_use.get(place)
        if found is None:
            found = self.examples(trial_seed, task, part)
            if self._mirrors and part == "train":
                found = replace(found, mirrored=self.mirrored(trial_seed, task, found))
            self._in_use[place] = found
            if self.keeps(key):
                self._kept[place] = found
        return found


@dataclass(frozen=True)
class TaskSequence:
    """The tasks of one trial seed; tasks are numbered from 0.

    While the arrays of a task are referenced, every sequence of the family with an equal `key(task)` returns the same
    objects; otherwise they are generated again with equal content.
    """

    family: TaskFamily
    trial_seed: int

    def key(self, task: int) -> Hashable:
        """Return the key of a task within the family; tasks with equal keys have equal arrays."""
        return self.family.key(self.trial_seed, task)

    def train(self, task: int) -> Examples:
        """Return the training examples of a task."""
        return self.family.shared(self.trial_seed, task, "train")

    def validation(self, task: int) -> Examples:
        """Return the validation examples of a task, held out of the training half."""
        return self.family.shared(self.trial_seed, task, "validation")

    def test(self, task: int) -> Examples:
        """Return the test examples of a task."""
        return self.family.shared(self.trial_seed, task, "test")
