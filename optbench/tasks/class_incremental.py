"""Groups of classes, one group after the other, under one head and without task labels (split MNIST)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch

from optbench.counting import count
from optbench.errors import UsageError
from optbench.streams import generator
from optbench.suite.schema import ClassIncremental
from optbench.tasks.examples import PARTS, Examples, Part, Parts

Group = tuple[int, ...]


class ClassIncrementalTasks:
    """Task i holds the examples of the i-th group of classes; labels stay what they are in the dataset.

    In fixed order the groups are 0..k−1, k..2k−1, and so on. Shuffled, each trial seed shuffles the classes before
    they are grouped: both who is with whom and who comes when differ between seeds.
    """

    def __init__(self, settings: ClassIncremental, parts: Parts, classes: int, suite_seed: int) -> None:
        """Raises UsageError where the groups do not come out even, or some task would have no examples."""
        size = settings.group_size
        if classes % size:
            fitting = ", ".join(str(divisor) for divisor in range(1, classes + 1) if classes % divisor == 0)
            raise UsageError(
                f"tasks.group_size: {count(classes, 'class')} cannot be divided into groups of {size}; valid: {fitting}"
            )
        self._parts = parts
        self._size = size
        self._classes = classes
        self._shuffled = settings.order == "shuffled"
        self._suite_seed = suite_seed
        self._fixed = _groups(list(range(classes)), size)
        self.names = [
            f"group {number}" if self._shuffled else f"classes {_listing(group)}"
            for number, group in enumerate(self._fixed, start=1)
        ]
        self._check_none_empty()

    def key(self, trial_seed: int, task: int) -> Hashable:
        return "classes", self.groups(trial_seed)[task]

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        group = self.groups(trial_seed)[task]
        plain = self._parts[part]
        wanted = torch.tensor(group, device=plain.targets.device)
        return plain.select(torch.isin(plain.targets, wanted).nonzero().squeeze(1))

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        counts = torch.bincount(self._parts.train.targets.cpu(), minlength=self._classes).tolist()
        for seed in trial_seeds if self._shuffled else trial_seeds[:1]:
            for task, group in enumerate(self.groups(seed)):
                yield seed, task, sum(counts[label] for label in group)

    def keeps(self, key: Hashable) -> bool:
        # All groups of a fixed order come to one more copy of the data; those of many shuffled orders have no bound.
        return not self._shuffled

    def groups(self, trial_seed: int) -> list[Group]:
        """The classes of each task, ascending within a task."""
        if not self._shuffled:
            return self._fixed
        order = torch.randperm(self._classes, generator=generator(self._suite_seed, trial_seed, "class order"))
        return _groups(order.tolist(), self._size)

    def _check_none_empty(self) -> None:
        """Checked before any training: a task without examples would only show when its turn came."""
        for part in PARTS:
            counts = torch.bincount(self._parts[part].targets.cpu(), minlength=self._classes)
            absent = {label for label, count in enumerate(counts.tolist()) if count == 0}
            if self._shuffled:
                # Some order puts the absent classes together: refuse if they can fill a group.
                empty = tuple(sorted(absent)[: self._size]) if len(absent) >= self._size else None
            else:
                empty = next((group for group in self._fixed if absent.issuperset(group)), None)
            if empty is not None:
                raise UsageError(
                    f"protocol.{part}_examples: no {part} example among {int(counts.sum())} is of the classes "
                    f"{_listing(empty)}, so a task would be empty; raise it"
                )


def _groups(order: list[int], size: int) -> list[Group]:
    return [tuple(sorted(order[start : start + size])) for start in range(0, len(order), size)]


def _listing(group: Group) -> str:
    """`0,1` for few classes; `0-9` for a long run of them."""
    if len(group) > 4 and group[-1] - group[0] == len(group) - 1:
        return f"{group[0]}-{group[-1]}"
    return ",".join(map(str, group))
