"""Messages between the main process and workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from optbench.plan import Cohort, PairedSolutions, Trial
from optbench.store.interim import Begun
from optbench.store.pairs_table import PairRow
from optbench.store.tables import Row
from optbench.suite import Suite
from optbench.targets import Source

OUT_OF_MEMORY = "out of memory"
Weights = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Job:
    """The information that a worker needs before its first unit."""

    suite: Suite
    data_dir: Path | None
    interim: Path
    """The folder in which the states of cohorts are saved at the end of a task."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """The users' code as the main process has read it, by the part of the target before the colon."""
    elsewhere: Elsewhere | None = None
    """Information for a worker on another machine, which cannot read the main process's files; None for a worker on
    this machine."""


@dataclass(frozen=True)
class Elsewhere:
    """The information about the main process that a worker on another machine needs.

    made_with: versions and CPU instructions of the main process, by name.
    installed: source hashes of the installed packages that a run uses, by target.
    force: True to train even if these packages differ on the worker's machine.
    notes: additional notes for trials.
    """

    made_with: Mapping[str, str]
    installed: Mapping[str, str]
    force: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """A dataset for a worker on another machine. key: the dataset's settings as JSON. content: the pickled dataset."""

    key: str
    content: bytes


@dataclass(frozen=True)
class Train:
    """A unit of work: train a cohort, or a piece of one.

    begun: the saved states from which the unit's trials resume, by trial id; empty if the trials start over. note: a
        note to add to the results of these trials, or None.
    """

    cohort: Cohort
    begun: Mapping[str, Begun]
    note: str | None = None

    @property
    def id(self) -> str:
        return self.cohort.id

    @property
    def experiment(self) -> str:
        return self.cohort.experiment

    @property
    def user_code(self) -> frozenset[str]:
        """The targets of the users' code that this unit runs."""
        return frozenset().union(*(trial.user_code for trial in self.cohort.trials))


@dataclass(frozen=True)
class Compare:
    """A unit of work: compare the solutions of one seed.

    places: the files with the trials' final weights, by trial id. missing: for each trial without final weights, the
        reason, by trial id.
    """

    comparison: PairedSolutions
    places: Mapping[str, Path]
    missing: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.comparison.id

    @property
    def experiment(self) -> str:
        return self.comparison.experiment

    @property
    def user_code(self) -> frozenset[str]:
        """The targets of the users' code that this unit runs, which include no optimizers."""
        return frozenset().union(*(trial.kinds for trial in self.comparison.trials))


Unit: TypeAlias = Train | Compare
"""The work that is submitted to a worker in one step."""


@dataclass(frozen=True)
class Finished:
    """The result of training a cohort: the rows of every trial, and the final weights of trials that have them."""

    cohort: Cohort
    rows: tuple[tuple[Trial, Row], ...]
    weights: tuple[tuple[Trial, Weights], ...]


@dataclass(frozen=True)
class Compared:
    """The result of comparing the solutions of one seed: the rows of every pair."""

    comparison: PairedSolutions
    rows: tuple[PairRow, ...]


@dataclass(frozen=True)
class Divide:
    """A message that a cohort must be divided.

    too_large: True if the cohort does not fit into memory; False if a user's code raised an exception.
    """

    unit: Train
    too_large: bool = True


@dataclass(frozen=True)
class Failed:
    """A message that a cohort could not be trained, or that solutions could not be compared."""

    unit: Unit
    error_type: str
    message: str
    details: str = ""


@dataclass(frozen=True)
class Saved:
    """A message that a worker on another machine has saved the state of a cohort in a part on that machine."""

    part: Path


@dataclass(frozen=True)
class Arrived:
    """A part that arrived from another machine: the content of its files by name, including the manifest."""

    name: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Said:
    """A message about workers that is shown to the user in one line."""

    text: str


Answer: TypeAlias = Finished | Compared | Divide | Failed
"""The result of a unit."""


def halved(answer: Divide, places: Callable[[Cohort], Mapping[str, Begun]]) -> list[Train]:
    """Return the two halves of the unit in `answer`.

    Results do not change, because no trial depends on the others in its piece. If the unit was too large, its trials
    get a note.

    places: a function that returns the states from which the trials of a piece resume, by trial id.
    """
    unit, note = answer.unit, answer.unit.note
    if answer.too_large and not (note or "").startswith(OUT_OF_MEMORY):  # an earlier note gives the larger size
        note = f"{OUT_OF_MEMORY} with {len(unit.cohort.trainings)} members together, trained in smaller cohorts"
    return [Train(half, places(half), note) for half in unit.cohort.split(2)]
