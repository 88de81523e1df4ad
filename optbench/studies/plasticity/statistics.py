"""Each optimizer's online accuracies, by task and seed.

Legend: `S` trials that are ok, in seed order; `T` tasks; `w` tasks per window.
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
"""Columns of the table `online` that describe the network before a task's first update."""
RECORDED = (ACCURACY, *BEFORE)


@dataclass(frozen=True)
class LearntOnline:
    """The online recordings of one arm.

    recorded: values by column of the table `online`, (S, T); NaN where undefined.
    """

    arm: Arm
    recorded: Mapping[str, Array] = field(repr=False)

    @property
    def tasks(self) -> int:
        count: int = self.recorded[ACCURACY].shape[1]
        return count

    @property
    def window(self) -> int:
        """Number of tasks in a window, w."""
        return window(self.tasks)

    @property
    def in_window(self) -> str:
        """The size of a window in words, for use after "the last": e.g. `3 tasks`, or `task` if w is 1."""
        return f"{self.window} tasks" if self.window > 1 else "task"

    @property
    def is_fresh(self) -> bool:
        """Whether the arm trains a new network for every task."""
        return FRESH in self._trial.around

    @property
    def is_control(self) -> bool:
        """Whether the arm is a wrapper whose base takes the steps, such as a remedy or fresh networks."""
        return bool(self._trial.around)

    @functools.cached_property
    def windows(self) -> Array:
        """Mean online accuracies over every w consecutive tasks, (S, T - w + 1)."""
        return window_means(self.recorded[ACCURACY])

    @property
    def first(self) -> list[float]:
        """Online accuracy of each seed over the first w tasks."""
        return _listed(self.windows[:, 0])

    @property
    def best(self) -> list[float]:
        """Online accuracy of each seed over the best w consecutive tasks."""
        return _listed(self.windows.max(axis=1))

    @property
    def late(self) -> list[float]:
        """Online accuracy of each seed over the last w tasks."""
        return _listed(self.windows[:, -1])

    def at_end(self, column: str) -> list[float]:
        """Return each seed's mean of a column's defined values on the last w tasks; NaN if there are none."""
        found = self.recorded[column][:, -self.window :]
        return [float(np.mean(row[np.isfinite(row)])) if np.isfinite(row).any() else np.nan for row in found]

    def at(self, column: str, task: int) -> list[float]:
        """Return each seed's value of a column on one task; tasks are numbered from 1."""
        return _listed(self.recorded[column][:, task - 1])

    @property
    def _trial(self) -> Trial:
        return next(iter(self.arm.trials.values()))


def learnt_online(results: Results) -> list[LearntOnline]:
    """Return every arm with recorded online accuracies, in suite order, including arms without an ok trial.

    Return an empty list for a tuning run, whose settings are only candidates.

    Raises:
        StoreError: the table `online` is unreadable.
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
