"""Plasticity metrics, derived from the table `online` when it is read: one number per trial and metric.

Legend: `T` is the number of tasks; a sequence (T,) contains the online accuracy on each task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from optbench.counting import grouped
from optbench.metrics import METRICS, Metric, plasticity
from optbench.plan import Trial, fresh_networks
from optbench.store.columns import codes, numbers

Sequence: TypeAlias = NDArray[np.float64]
ACCURACY = "online_accuracy"
ONLINE = tuple(metric for metric in METRICS.values() if metric.kind == "online")


@dataclass(frozen=True)
class Online:
    """Online recordings of a run.

    sequences: the sequence of every trial that has one, with NaN for tasks after the end of the trial.
    fresh: trial -> the corresponding trial with fresh networks, from `plan.fresh_networks`.
    good: the trials with status `ok`; other trials have no values.
    """

    sequences: Mapping[str, Sequence] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    good: Set[str] = frozenset()

    @staticmethod
    def of(table: pa.Table, tasks: Mapping[str, int], good: Set[str], planned: Iterable[Trial]) -> Online:
        """Read the table `online`. tasks: T by trial, as for `sequences`. planned: all planned trials."""
        if not table.num_rows:
            return Online()
        return Online(sequences(table, tasks), fresh_networks(planned), good)

    def values(self) -> dict[str, dict[str, float]]:
        """Return metric -> trial -> value for metrics of the kind `online` and good trials; NaN where undefined."""
        found: dict[str, dict[str, float]] = {}
        for group in grouped((len(self.sequences[t]), t) for t in self.sequences if t in self.good).values():
            stacked = np.stack([self.sequences[trial] for trial in group])
            missing = np.full_like(stacked[0], np.nan)
            fresh = np.stack([missing if (one := self._fresh(t)) is None else self.sequences[one] for t in group])
            for metric in ONLINE:
                data = (stacked, fresh) if "fresh" in metric.reads else (stacked,)
                values = metric.function()(*data).tolist()
                found.setdefault(metric.name, {}).update(zip(group, values, strict=True))
        return found

    def note(self, metric: Metric, trial: str) -> str | None:
        """Return why a metric of the kind `online` is undefined for a trial with a sequence; None if it is defined."""
        if (found := plasticity.note(self.sequences[trial], **metric.note_arguments)) is not None:
            return found
        if trial not in self.good:
            return "the trial diverged or failed"
        if "fresh" not in metric.reads or self._fresh(trial) is not None:
            return None
        if trial not in self.fresh:
            return "the experiment has no fresh-network with the same base optimizer and settings"
        return "the trial with fresh networks diverged or failed"

    def _fresh(self, trial: str) -> str | None:
        """Return the corresponding trial with fresh networks.

        Return None if there is none, if its status is not `ok`, or if its number of tasks differs.
        """
        one = self.fresh.get(trial, "")
        well = one in self.good and one in self.sequences and len(self.sequences[one]) == len(self.sequences[trial])
        return one if well else None


def sequences(online: pa.Table, tasks: Mapping[str, int], column: str = ACCURACY) -> dict[str, Sequence]:
    """Return a column of the table `online` as one array (T,) per trial, with NaN for missing rows and nulls.

    tasks: T by trial. For trials whose T is missing or 0, the last task reached is used as T.
    """
    trial, ids = codes(online["trial"])
    task, values = numbers(online["task"]).astype(np.int64), numbers(online[column])
    reached = np.zeros(len(ids), np.int64)
    np.maximum.at(reached, trial, task)
    counts = np.array([tasks.get(name) or int(last) for name, last in zip(ids, reached, strict=True)], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = np.full(int(starts[-1]), math.nan)
    known = task <= counts[trial]
    flat[starts[trial[known]] + task[known] - 1] = values[known]
    return {name: flat[starts[i] : starts[i + 1]] for i, name in enumerate(ids)}
