"""The contract of a task sequence: named tasks whose examples depend only on the seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optbench.checks.finding import Finding, Found, lines
from optbench.checks.problem import SMALL
from optbench.checks.samples import first_that_fits
from optbench.data import Dataset
from optbench.kinds import TASKS
from optbench.suite.protocol import Protocol
from optbench.suite.schema import TaskSettings
from optbench.tasks.examples import PARTS, Examples, Part, Parts, split_dataset
from optbench.tasks.kind import DRAW, Tasks

SEEDS = (0, 1)
PROTOCOL = Protocol(validation_examples=SMALL.batch_size)
Place = tuple[int, int, Part]


@dataclass(frozen=True, eq=False)
class _Subject:
    settings: TaskSettings
    dataset: Dataset

    def parts(self) -> Parts:
        return split_dataset(self.dataset, PROTOCOL, 0, torch.device("cpu"))

    def tasks(self) -> Tasks:
        return Tasks(self.settings, self.parts(), 0)

    def examples(self, tasks: Tasks, *, backwards: bool = False) -> dict[Place, Examples]:
        """Return the examples of every part of every task for two trial seeds.

        backwards: whether to generate the examples in reverse order.
        """
        places = [(s, task, part) for s in SEEDS for task in range(tasks.outline.count) for part in PARTS]
        order = reversed(places) if backwards else places
        return {place: tasks.examples(*place) for place in order}


def findings(target: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Check a task sequence by generating every task several times, on the first form of sample data that fits.

    Raises:
        KindError, ValidationError: the task sequence cannot be loaded, or rejects its settings.
    """
    TASKS.complete(target, settings)
    return _lines(TaskSettings.of(target, **settings))


def _lines(settings: TaskSettings) -> Iterator[Finding]:
    def first(dataset: Dataset) -> _Subject:
        subject = _Subject(settings, dataset)
        subject.tasks().examples(SEEDS[0], 0, "train")
        return subject

    found = first_that_fits(first)
    if isinstance(found, str):
        yield Finding("builds", "failed", found)
        return
    yield Finding("builds", "passed", f"over {found.name}")
    yield from lines(found.made, CHECKS)


def _names(subject: _Subject) -> Found:
    outline = subject.tasks().outline
    shown = ", ".join(outline.names[:4]) + (", ..." if outline.count > 4 else "")
    disjoint = "; no two tasks share a class" if outline.disjoint else ""
    return "passed", f"{outline.count} {'task' if outline.count == 1 else 'tasks'}: {shown}{disjoint}"


def _examples(subject: _Subject) -> Found:
    found = subject.examples(subject.tasks())
    sizes = [[len(examples) for (*_, part), examples in found.items() if part == wanted] for wanted in PARTS]
    ranges = [f"{min(s)}" if min(s) == max(s) else f"{min(s)} to {max(s)}" for s in sizes]
    counts = ", ".join(f"{numbers} {part}" for numbers, part in zip(ranges, PARTS, strict=True))
    return "passed", f"every task has {counts} examples, in the dataset's form"


def _reproducible(subject: _Subject) -> Found:
    one, other = (subject.examples(subject.tasks()) for _ in range(2))
    if differs := _difference(one, other):
        return "failed", f"{differs} differs when made a second time; {DRAW}"
    return "passed", "bit-identical when made twice"


def _order(subject: _Subject) -> Found:
    one, other = (subject.examples(subject.tasks(), backwards=backwards) for backwards in (False, True))
    if differs := _difference(one, other):
        return "failed", f"{differs} depends on which tasks were requested before; {DRAW}"
    return "passed", "the examples do not depend on the order of calls"


def _keys(subject: _Subject) -> Found:
    tasks = subject.tasks()
    found = subject.examples(tasks)
    known: dict[Any, Examples] = {}
    for (seed, task, part), examples in found.items():
        other = known.setdefault((tasks.key(seed, task), part), examples)
        if not _same(other, examples):
            fault = f"task {task + 1} of trial seed {seed} has the same key as a task with different examples"
            return "failed", f"{fault}; see key()"
    return "passed", f"equal keys give equal examples; distinct tasks over both trial seeds: {len(known) // len(PARTS)}"


def _data(subject: _Subject) -> Found:
    parts, fresh = subject.parts(), subject.parts()
    subject.examples(Tasks(subject.settings, parts, 0))
    changed = [part for part in PARTS if not _same(fresh[part], parts[part])]
    if changed:
        return "failed", f"examples() changes the dataset's {changed[0]} examples; work on a clone()"
    return "passed", "the dataset is unchanged"


def _difference(one: Mapping[Place, Examples], other: Mapping[Place, Examples]) -> str | None:
    wrong = next((place for place in one if not _same(one[place], other[place])), None)
    return None if wrong is None else f"the {wrong[2]} part of task {wrong[1] + 1}, trial seed {wrong[0]},"


def _same(one: Examples, other: Examples) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


CHECKS = (
    ("names", _names),
    ("examples", _examples),
    ("data", _data),
    ("reproducible", _reproducible),
    ("order of calls", _order),
    ("keys", _keys),
)
