"""Task sequences of any kind: outlines, and defaults for optional methods.

A kind is a class `(data: Parts, seed: int, **settings)` with

    names: one per task, for tables; valid for all trial seeds.
    examples(trial_seed, task, part): a part of task `task` (from 0), as Examples or tensors (inputs, targets).

    and optionally

    outline(classes, **settings): a static method that returns the Outline. A class without it can instead have the
        attribute disjoint_classes, which is True if no two tasks share a class.
    key(trial_seed, task): a hashable value; tasks with equal keys have equal arrays. By default, the arguments.
    keeps(key): whether the arrays are kept for the whole run; by default, they are kept only while in use.
    mirrored(trial_seed, task): the training inputs made from mirror images, for `protocol.augment`, or None if
        mirroring the result of examples() gives the same inputs. By default, None.
    train_sizes(trial_seeds): yields (trial seed, task, number of training examples), once for each distinct number.
        By default, only for the first seed and task.

    Random draws use streams of `seed` (the suite's), the trial seed and a purpose, as in `optbench.streams`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from optbench.errors import KindError
from optbench.kinds import calling
from optbench.late import torch
from optbench.streams import stream_seed
from optbench.tasks.examples import PARTS, Examples

if TYPE_CHECKING:
    from optbench.suite.schema import TaskSettings
    from optbench.tasks.examples import Part, Parts

DRAW = "draw from torch.Generator().manual_seed(...), seeded by seed, trial_seed and task"


@dataclass(frozen=True)
class Outline:
    """The description of a task sequence for tables and figures.

    Attributes:
        names: (T,) one per task; empty if unknown.
        classes: number of classes in one task.
        disjoint: True if no two tasks share a class.
        ticks: (T,) tick labels for a task axis; empty to use task numbers.
        axis: the label of the task axis.
    """

    names: tuple[str, ...] = ()
    classes: int = 0
    disjoint: bool = False
    ticks: tuple[str, ...] = ()
    axis: str = "task"

    @property
    def count(self) -> int:
        """The number of tasks, T."""
        return len(self.names)

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Outline:
        """Read an outline from `run.json`; raise ValueError if it is invalid."""
        return TypeAdapter(Outline).validate_python(record)


def outline_of(settings: TaskSettings, classes: int, domains: Sequence[str] = ()) -> Outline:
    """Return the outline as far as it is known without data; empty if the kind does not provide one.

    classes: the number of classes in the dataset, which built-in kinds need; 0 if unknown.
    domains: the domains of a text dataset.
    """
    find = getattr(settings.registry.load(settings.kind), "outline", None)
    if find is None or not (classes or settings.is_users):
        return Outline()
    with _around(settings, 0):
        more = {"domains": domains} if domains and not settings.is_users else {}
        found = find(classes, **settings.arguments, **more)
    if not isinstance(found, Outline):
        raise KindError(f"{settings.kind}: outline: expected an optbench.Outline, got {type(found).__name__}")
    return found


def _around(settings: TaskSettings, seed: int) -> AbstractContextManager[None]:
    return calling(seed) if settings.is_users else contextlib.nullcontext()


class Tasks:
    """The tasks of one experiment, for every trial seed.

    Attributes:
        parts: the unmodified examples.
        outline: the outline of the tasks.
    """

    def __init__(self, settings: TaskSettings, parts: Parts, suite_seed: int) -> None:
        """Raise KindError if the kind violates the contract, UsageError if the settings do not fit the data."""
        self._settings, self.parts, self._suite_seed = settings, parts, suite_seed
        self._kind = settings.make(parts, suite_seed, seed=stream_seed(suite_seed, None, "task sequence"))
        with _around(settings, 0):
            names = getattr(self._kind, "names", None)
            if isinstance(names, str) or not isinstance(names, Iterable):
                raise KindError(f"{settings.kind}: expected 'names', a name for each task, got {type(names).__name__}")
            names = tuple(names)
            disjoint = bool(getattr(self._kind, "disjoint_classes", False))
        if not names or not all(isinstance(name, str) for name in names):
            raise KindError(f"{settings.kind}: expected 'names', a name for each task, got {list(names)!r}")
        if not callable(getattr(self._kind, "examples", None)):
            raise KindError(f"{settings.kind}: expected a method 'examples(trial_seed, task, part)', got none")
        known = outline_of(settings, parts.classes, tuple(parts.texts or ()))
        self.outline = known if known.count == len(names) else Outline(names, parts.classes, disjoint)

    def key(self, trial_seed: int, task: int) -> Hashable:
        found: Hashable = self._call("key", (trial_seed, task), trial_seed, task)
        return found

    def keeps(self, key: Hashable) -> bool:
        return bool(self._call("keeps", False, key))

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        """Return the examples of a part of a task; raise KindError if a user's kind does not return valid examples."""
        with _around(self._settings, stream_seed(self._suite_seed, trial_seed, f"task {task} {part}")):
            before = self._versions()
            found = self._kind.examples(trial_seed, task, part)
            where = f"{self._settings.kind}: examples({trial_seed}, {task}, '{part}')"
            if before != self._versions():
                raise KindError(f"{where}: changes the examples of the dataset in place; work on a clone()")
            return _checked(found, self.parts, where) if self._settings.is_users else found

    def mirrored(self, trial_seed: int, task: int, examples: Examples) -> torch.Tensor | None:
        """Return the training inputs made from mirror images, as in `Examples.mirrored`; None if the kind has none.

        examples: the training examples of the task.

        Raises:
            KindError: a user's kind returns an invalid result.
        """
        found: torch.Tensor | None = self._call("mirrored", None, trial_seed, task)
        if found is None or not self._settings.is_users:
            return found
        return _checked(
            (found, examples.targets), self.parts, f"{self._settings.kind}: mirrored({trial_seed}, {task})"
        ).inputs

    def try_first(self, trial_seed: int) -> None:
        """Generate the first task of a trial seed twice.

        Raises:
            KindError: the results differ, so a trial's results would depend on earlier calls.
        """
        for part in PARTS:
            one, again = (self.examples(trial_seed, 0, part) for _ in range(2))
            if not (torch.equal(one.inputs, again.inputs) and torch.equal(one.targets, again.targets)):
                call = f"{self._settings.kind}: examples({trial_seed}, 0, '{part}')"
                raise KindError(
                    f"{call}: expected the same examples on every call, got different ones on the second; {DRAW}"
                )

    def _versions(self) -> list[int]:
        """Return PyTorch's version counters of the examples shared by all trials; in-place changes increment them."""
        parts = (self.parts.train, self.parts.validation, self.parts.test)
        return [tensor._version for part in parts for tensor in (part.inputs, part.targets)]

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield (trial seed, task, number of training examples); by default, only for the first seed and task."""
        found = self._call("train_sizes", None, trial_seeds)
        yield from found or [(trial_seeds[0], 0, len(self.examples(trial_seeds[0], 0, "train")))]

    def _call(self, name: str, otherwise: Any, *arguments: Any) -> Any:
        with _around(self._settings, 0):
            method = getattr(self._kind, name, None)
            return otherwise if method is None else method(*arguments)


def _checked(found: Any, parts: Parts, where: str) -> Examples:
    """Convert the result of a user's kind to examples on the device of the data.

    Raises:
        KindError: the result is invalid, or does not fit the dataset.
    """
    from optbench.data.dataset import Split, fault_of, form_of  # late, because it imports torch

    pair: Any = (
        found if isinstance(found, tuple | list) else [getattr(found, name, None) for name in ("inputs", "targets")]
    )
    if len(pair) != 2 or not all(isinstance(tensor, torch.Tensor) for tensor in pair):
        raise KindError(f"{where}: expected Examples, or tensors (inputs, targets), got {type(found).__name__}")
    split = Split(pair[0].detach(), pair[1].detach(), getattr(found, "cues", None))
    plain = Split(parts.train.inputs, parts.train.targets)
    if (fault := fault_of(split, parts.classes, parts.spec.vocabulary)) is not None:
        raise KindError(f"{where}{fault}")
    if (form := form_of(split)) != (expected := form_of(plain)):
        raise KindError(f"{where}: expected examples in the dataset's form, {expected}, got {form}")
    device = plain.inputs.device
    cues = None if split.cues is None else split.cues.to(device)
    return Examples(split.inputs.to(device).contiguous(), split.targets.to(device).contiguous(), cues=cues)
