"""What each optimizer has learnt online, task by task, over its seeds.

Legend: `S` trials that are ok, in the order of the seeds; `T` tasks; `w` tasks of a window.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from optbench.metrics.plasticity import window, window_means
from optbench.plan import FRESH, Trial
from optbench.stats.arms import Arm, arms
from optbench.stats.results import Results
from optbench.store.online import ACCURACY, sequences

Array: TypeAlias = NDArray[np.float64]
BEFORE = ("dead", "dormant", "effective_rank")
"""Of the network before a task's first update, as the table `online` has it."""
RECORDED = (ACCURACY, *BEFORE)


@dataclass(frozen=True)
class LearntOnline:
    """One arm. recorded: by column of the table, (S, T); NaN where it was undefined."""

    arm: Arm
    recorded: Mapping[str, Array] = field(repr=False)

    @property
    def tasks(self) -> int:
        count: int = self.recorded[ACCURACY].shape[1]
        return count

    @property
    def window(self) -> int:
        """w."""
        return window(self.tasks)

    @property
    def in_window(self) -> str:
        """What a window is, after "the last": `3 tasks`, or `task`."""
        return f"{self.window} tasks" if self.window > 1 else "task"

    @property
    def is_fresh(self) -> bool:
        """Whether its networks are new at every task."""
        return FRESH in self._trial.around

    @property
    def is_control(self) -> bool:
        """Whether it only adds to a base, and leaves the steps to it: what other optimizers are read against."""
        return bool(self._trial.around)

    @functools.cached_property
    def windows(self) -> Array:
        """The online accuracy of every w tasks in a row, (S, T - w + 1)."""
        return window_means(self.recorded[ACCURACY])

    @property
    def first(self) -> list[float]:
        """Of each seed, over the first w tasks."""
        return _listed(self.windows[:, 0])

    @property
    def best(self) -> list[float]:
        """Likewise over the best w tasks in a row."""
        return _listed(self.windows.max(axis=1))

    @property
    def late(self) -> list[float]:
        """Likewise over the last w tasks."""
        return _listed(self.windows[:, -1])

    def at_end(self, column: str) -> list[float]:
        """Of each seed, the mean before the last w tasks; of those where it is defined."""
        found = self.recorded[column][:, -self.window :]
        return [float(np.mean(row[np.isfinite(row)])) if np.isfinite(row).any() else np.nan for row in found]

    def at(self, column: str, task: int) -> list[float]:
        """Of each seed; task: from 1."""
        return _listed(self.recorded[column][:, task - 1])

    @property
    def _trial(self) -> Trial:
        return next(iter(self.arm.trials.values()))


def learnt_online(results: Results) -> list[LearntOnline]:
    """Every arm of which online accuracies were recorded, in the suite's order; those without an ok trial too.

    Nothing of a tuning run, whose many settings are only there to be chosen from.

    Raises:
        StoreError: the table is unreadable.
    """
    if results.suite.stage == "tune" or not results.online.sequences:
        return []
    table = results.run.table("online")
    tasks = {trial.id: results.outlines[trial.experiment].count for trial in results.trials}
    columns = {name: sequences(table, tasks, name) for name in RECORDED}
    found = []
    for arm in arms(results):
        every = [trial.id for trial in arm.trials.values() if trial.id in results.online.sequences]
        if every:
            width = results.outlines[arm.experiment].count or max(len(columns[ACCURACY][trial]) for trial in every)
            well = [t.id for seed, t in arm.trials.items() if arm.status(seed) == "ok" and t.id in every]
            well = [trial for trial in well if len(columns[ACCURACY][trial]) == width]
            rows = {n: np.array([of[t] for t in well]).reshape(len(well), width) for n, of in columns.items()}
            found.append(LearntOnline(arm, rows))
    return found


def _listed(values: Array) -> list[float]:
    found: list[float] = values.tolist()
    return found
