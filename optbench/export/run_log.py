"""The data of a run that every tracker receives: the settings, final values and series of each trial.

Final values are those shown in reports. Controls are left out, as in reports, because a tracker that averages over
seeds would include controls in its means.
"""

from __future__ import annotations

import functools
import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optbench.errors import StoreError
from optbench.export.series import Entry, Series, read_series
from optbench.metrics import PRIMARY_METRICS, Metric
from optbench.plan import Trial
from optbench.stats.results import Results
from optbench.store.tables import TrialRow
from optbench.suite.variants import leaves

KEYS = ("experiment", "model", "optimizer", "target", "variant", "seed", "stage")
"""Settings that identify a trial."""
TAKEN = (*KEYS, "status", "trial", "run")
"""Reserved names. A hyper-parameter with one of these names is logged as `hyperparameters.<name>`."""


@dataclass(frozen=True)
class TrialLog:
    """The data of one finished trial that every tracker receives.

    status: as returned by `Results.status`. final: metric -> final value, without undefined values.
    hyperparameters: as in the table `trials`, with a nested optimizer's hyper-parameters as a nested mapping.
    """

    trial: Trial
    row: TrialRow
    status: str
    hyperparameters: Mapping[str, Any]
    final: Mapping[str, float]
    series: tuple[Series, ...] = field(repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in `KEYS`, then the hyper-parameters, with a nested optimizer's as a nested mapping."""
        named = {f"hyperparameters.{name}" if name in TAKEN else name: v for name, v in self.hyperparameters.items()}
        return {**{name: getattr(self.trial, name) for name in KEYS}, **named}

    @property
    def flat_settings(self) -> dict[str, Any]:
        """`settings`, flattened: the learning rate of a nested optimizer, for example, is named `base.lr`."""
        return {".".join(path): value for path, value in leaves(self.settings).items()}

    @property
    def remarks(self) -> dict[str, str]:
        """The exception of a failed trial (`error`) and remarks on the trial (`note`), if any."""
        raised = None if self.row.error_type is None else f"{self.row.error_type}: {self.row.error_message}"
        return {name: text for name, text in (("error", raised), ("note", self.row.note)) if text}

    @property
    def entries(self) -> Iterator[Entry]:
        """The training curves, the accuracies after each task and the online recordings, each along its axis."""
        for series in self.series:
            yield from series(self.trial.id)


@dataclass(frozen=True)
class RunLog:
    """The finished trials of a run."""

    results: Results

    @property
    def name(self) -> str:
        """The run's id."""
        return self.results.run.id

    @functools.cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric for which any trial has a final value, starting with the primary metrics of the suite."""
        experiments = self.results.suite.experiments.values()
        primary = dict.fromkeys(name for one in experiments for name in one.primary or PRIMARY_METRICS)
        known = self.results.metrics
        taken = {name for values in self._final.values() for name in values}
        return tuple(known[name] for name in {**primary, **known} if name in known and name in taken)

    @property
    def about(self) -> dict[str, Any]:
        """The texts and numbers in the run's record: suite, status, times, command and provenance."""
        record = self.results.run.record
        told = {"run": self.name, **{name: record.get(name) for name in ("suite", "status", "created", "finished")}}
        told["command"] = shlex.join(record.get("command") or ())
        told |= record.get("provenance") or {}
        return {name: v for name, v in told.items() if v not in (None, "") and isinstance(v, str | int | float)}

    @functools.cached_property
    def created(self) -> float:
        """The time at which the run was created, in seconds since 1970; 0 if the record does not contain it."""
        try:
            return datetime.fromisoformat(self.results.run.record["created"]).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError):
            return 0.0

    @functools.cached_property
    def trials(self) -> tuple[TrialLog, ...]:
        """Every finished trial, in the order of the plan.

        Raises:
            StoreError: a table is damaged.
        """
        series = read_series(self.results.run)
        rows = self.results.rows
        found = []
        for trial in self.results.trials:
            if trial.id in rows:
                row, final = rows[trial.id], self._final.get(trial.id, {})
                told = (self.results.status(trial.id), self._hyperparameters(trial.id))
                found.append(TrialLog(trial, row, *told, final, series))
        return tuple(found)

    @functools.cached_property
    def _final(self) -> dict[str, dict[str, float]]:
        """The final values, without undefined values: trial -> metric -> value."""
        found: dict[str, dict[str, float]] = {}
        for one in self.results.trial_values():
            if not math.isnan(one.value):
                found.setdefault(one.trial.id, {})[one.metric] = one.value
        return found

    def _hyperparameters(self, trial: str) -> dict[str, Any]:
        try:
            found = json.loads(self.results.rows[trial].hyperparameters)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            file = self.results.run.path / "trials.parquet"
            raise StoreError(f"{file}: {trial}: 'hyperparameters': expected a mapping in JSON, got other text")
        return found
