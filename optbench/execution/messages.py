"""What a worker is given, and what it answers."""

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
    """What a worker needs to know before its first unit."""

    suite: Suite
    data_dir: Path | None
    interim: Path
    """The folder for cohorts' states at the end of a task."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """What targets mean: the users' code as the run's own process has read it."""
    elsewhere: Elsewhere | None = None
    """For workers of other machines; they read no file of the run's own process."""


@dataclass(frozen=True)
class Elsewhere:
    """What a worker of another machine has to know of the run's own process.

    made_with: its versions and CPU instructions, by name. installed: source hashes of what a run uses of installed
    packages, by target. force: train although something differs. notes: what is said of trials besides.
    """

    made_with: Mapping[str, str]
    installed: Mapping[str, str]
    force: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """A dataset for a worker of another machine: pickled, by its settings as JSON."""

    key: str
    content: bytes


@dataclass(frozen=True)
class Train:
    """Work for a worker: a cohort, or a piece of one.

    begun: where its trials resume, by their ids; empty if they start over. note: what is to be said of its trials.
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
        """Targets of the user's own that it runs."""
        return frozenset().union(*(trial.user_code for trial in self.cohort.trials))


@dataclass(frozen=True)
class Compare:
    """Work for a worker: the solutions of one seed.

    places: file of the final weights of every trial that has any. missing: why the others have none.
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
        """Targets of the user's own that it runs: no optimizer's."""
        return frozenset().union(*(trial.kinds for trial in self.comparison.trials))


Unit: TypeAlias = Train | Compare
"""What one worker does at a time."""


@dataclass(frozen=True)
class Finished:
    """A cohort was trained: rows of every trial, and final weights of those that have any."""

    cohort: Cohort
    rows: tuple[tuple[Trial, Row], ...]
    weights: tuple[tuple[Trial, Weights], ...]


@dataclass(frozen=True)
class Compared:
    """The solutions of one seed were compared: rows of every pair."""

    comparison: PairedSolutions
    rows: tuple[PairRow, ...]


@dataclass(frozen=True)
class Divide:
    """A cohort to be trained in parts: it does not fit in memory, or a user's code raised, perhaps for one member."""

    unit: Train
    too_large: bool = True


@dataclass(frozen=True)
class Failed:
    """A cohort could not be trained, or solutions not compared, for a reason that is not the user's settings."""

    unit: Unit
    error_type: str
    message: str
    details: str = ""


@dataclass(frozen=True)
class Saved:
    """A worker of another machine has saved the state of a cohort, in a part there."""

    part: Path


@dataclass(frozen=True)
class Arrived:
    """Such a part as it arrived from there: its files by name, whose checksums are among them."""

    name: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Said:
    """Something about workers that is worth a line."""

    text: str


Answer: TypeAlias = Finished | Compared | Divide | Failed
"""How a unit ended."""


def halved(answer: Divide, places: Callable[[Cohort], Mapping[str, Begun]]) -> list[Train]:
    """Both halves of a unit. No result depends on it, as none does on its companions; where it was too large, the notes
    of the trials say so all the same. places: where the trials of a piece resume."""
    unit, note = answer.unit, answer.unit.note
    if answer.too_large and not (note or "").startswith(OUT_OF_MEMORY):  # else the whole it was a part of says more
        note = f"{OUT_OF_MEMORY} with {len(unit.cohort.trainings)} members together, trained in smaller cohorts"
    return [Train(half, places(half), note) for half in unit.cohort.split(2)]
