"""Groups of classes learnt in sequence, with one head and without task labels (split MNIST)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from optbench.counting import count
from optbench.errors import UsageError
from optbench.kinds import Whole
from optbench.late import torch
from optbench.streams import generator
from optbench.tasks.examples import PARTS, Examples, Part, Parts
from optbench.tasks.kind import Outline

Group = tuple[int, ...]


class ClassIncremental:
    """Groups of classes learnt in sequence; all tasks share one head.

    Task i contains the examples of the i-th group of k = `group_size` classes; targets are those of the dataset. In
    fixed order, the groups are 0..k−1, k..2k−1, and so on. In shuffled order, each trial seed shuffles the classes
    before they are grouped, so that both the groups and their order differ between seeds.
    """

    def __init__(
        self,
        data: Parts,
        seed: int,
        *,
        group_size: Annotated[Whole, Field(ge=1)] = 2,
        order: Literal["fixed", "shuffled"] = "fixed",
    ) -> None:
        """Raise UsageError if examples have several targets, classes cannot be grouped evenly, or a task is empty."""
        if data.train.targets.ndim > 1:
            raise UsageError("tasks.kind: expected one target for each example, got one for each position")
        if data.classes % group_size:
            fitting = ", ".join(str(size) for size in range(1, data.classes + 1) if data.classes % size == 0)
            raise UsageError(
                f"tasks.group_size: {count(data.classes, 'class')} cannot be divided into groups of {group_size}; "
                f"valid: {fitting}"
            )
        self._parts, self._suite_seed = data, seed
        self._size, self._classes, self._shuffled = group_size, data.classes, order == "shuffled"
        self._fixed = _groups(list(range(data.classes)), group_size)
        self.names = self.outline(data.classes, group_size=group_size, order=order).names
        self._check_none_empty()

    @staticmethod
    def outline(classes: int, *, group_size: int, order: str) -> Outline:
        groups = _groups(list(range(classes - classes % group_size)), group_size)
        if order == "shuffled":
            return Outline(tuple(f"group {i + 1}" for i in range(len(groups))), group_size, disjoint=True)
        names = tuple(f"classes {_listing(group)}" for group in groups)
        ticks = tuple(",".join(map(str, g)) if group_size <= 3 else f"{g[0]}–{g[-1]}" for g in groups)
        return Outline(names, group_size, True, ticks, "classes of the task")

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
        # The groups of a fixed order take one more copy of the data; those of shuffled orders, one more for each seed.
        return not self._shuffled

    def groups(self, trial_seed: int) -> list[Group]:
        """Return the classes of each task of a trial seed, in ascending order within each task."""
        if not self._shuffled:
            return self._fixed
        order = torch.randperm(self._classes, generator=generator(self._suite_seed, trial_seed, "class order"))
        return _groups(order.tolist(), self._size)

    def _check_none_empty(self) -> None:
        """Raise UsageError before training if a task would have no examples."""
        for part in PARTS:
            counts = torch.bincount(self._parts[part].targets.cpu(), minlength=self._classes)
            absent = {label for label, count in enumerate(counts.tolist()) if count == 0}
            if self._shuffled:
                # some order puts absent classes together, so reject them if they can fill a group
                empty = tuple(sorted(absent)[: self._size]) if len(absent) >= self._size else None
            else:
                empty = next((group for group in self._fixed if absent.issuperset(group)), None)
            if empty is not None:
                raise UsageError(
                    f"protocol.{part}_examples: none of the {int(counts.sum())} {part} examples belongs to the classes "
                    f"{_listing(empty)}, so a task would be empty; increase this number"
                )


def _groups(order: list[int], size: int) -> list[Group]:
    return [tuple(sorted(order[start : start + size])) for start in range(0, len(order), size)]


def _listing(group: Group) -> str:
    """Return the classes of a group as text: `0,1`, or `0-9` for more than four consecutive classes."""
    if len(group) > 4 and group[-1] - group[0] == len(group) - 1:
        return f"{group[0]}-{group[-1]}"
    return ",".join(map(str, group))
