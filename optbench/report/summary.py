"""What a run found, summed up over seeds: typed values for every report format.

Trials that diverged or failed count, and are counted in plain sight, but have no part in a mean.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from optbench.plan import Trial, trials
from optbench.report.measures import MEASURES, Matrix, Measure
from optbench.store import Run
from optbench.suite import Suite, load_suite
from optbench.suite.schema import ExperimentSettings, Protocol


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over `n` trials; no deviation where n = 1."""

    mean: float
    sd: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        """The spread of the finite values; None where there is none."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        return Spread(statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else None, len(finite))


@dataclass(frozen=True)
class SummaryRow:
    """One optimizer setting on one experiment and model, over its seeds."""

    optimizer: str
    variant: str
    planned: int
    ok: int
    diverged: int
    failed: int
    values: Mapping[str, Spread | None]
    """By measure name, over the trials that are ok; None where undefined."""

    @property
    def label(self) -> str:
        """`adam`, or `adam lr=0.001` where settings were swept."""
        return self.optimizer if self.variant == "default" else f"{self.optimizer} {self.variant}"

    @property
    def missing(self) -> int:
        """Trials that were planned and never finished: the run was interrupted, or still goes on."""
        return self.planned - self.ok - self.diverged - self.failed


@dataclass(frozen=True)
class Section:
    """One experiment with one model: a row per optimizer setting, in the suite's order."""

    experiment: str
    model: str
    stopping: str
    """How a task ends, and which split decides it."""
    measures: tuple[Measure, ...]
    """Those that were taken here."""
    rows: tuple[SummaryRow, ...]


@dataclass(frozen=True)
class Summary:
    """A whole run."""

    run: str
    suite: str
    status: str
    created: str
    device: str
    planned: int
    statuses: Mapping[str, int]
    """Number of finished trials by status."""
    sections: tuple[Section, ...]

    @property
    def finished(self) -> int:
        return sum(self.statuses.values())


def summarise(run: Run) -> Summary:
    """Sum up a run over its seeds.

    Raises:
        SuiteError: the run's `suite.yaml` is not what `optbench run` wrote.
    """
    suite = load_suite(run.path / "suite.yaml")
    statuses = dict(zip(run.tables["trials"]["trial"], run.tables["trials"]["status"], strict=True))
    matrices = accuracy_matrices(run.tables["accuracy"])
    metrics = final_metrics(run.tables["metrics"])
    planned = trials(suite)
    return Summary(
        run=run.id,
        suite=suite.name,
        status=str(run.record.get("status")),
        created=str(run.record.get("created", "")),
        device=_device(run.record),
        planned=len(planned),
        statuses=Counter(statuses.values()),
        sections=tuple(_sections(suite, planned, statuses, matrices, metrics)),
    )


def accuracy_matrices(accuracy: pd.DataFrame) -> dict[str, Matrix]:
    """The accuracy matrix (T+1, T) of every trial in the long table, by trial; NaN where a value is missing."""
    matrices: dict[str, Matrix] = {}
    for trial, rows in accuracy.groupby("trial", sort=False):
        tasks = int(rows["task"].max())
        matrix = np.full((tasks + 1, tasks), np.nan)
        matrix[rows["after_task"].to_numpy(), rows["task"].to_numpy() - 1] = rows["accuracy"].to_numpy(np.float64)
        matrices[str(trial)] = matrix
    return matrices


def final_metrics(metrics: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(trial, metric) -> value after its last task, over all tasks pooled and all layers; NaN where undefined."""
    pooled = metrics[metrics["task"].isna() & metrics["layer"].fillna("features").eq("features")]
    last = pooled.groupby("trial")["after_task"].transform("max")
    final = pooled[pooled["after_task"] == last]
    values = final["value"].astype(float)
    return {(t, m): float(v) for t, m, v in zip(final["trial"], final["metric"], values, strict=True)}


def _sections(
    suite: Suite,
    planned: Sequence[Trial],
    statuses: Mapping[str, str],
    matrices: Mapping[str, Matrix],
    metrics: Mapping[tuple[str, str], float],
) -> Iterable[Section]:
    groups: dict[tuple[str, str], dict[tuple[str, str], list[Trial]]] = {}
    for trial in planned:
        settings = groups.setdefault((trial.experiment, trial.model), {})
        settings.setdefault((trial.optimizer, trial.variant), []).append(trial)
    taken = {(trial.experiment, trial.model, name) for trial in planned for name in _taken(trial, metrics)}
    for (experiment_name, model), settings in groups.items():
        experiment = suite.experiments[experiment_name]
        measures = tuple(
            measure
            for measure in MEASURES
            if _applies(measure, experiment)
            and (measure.of_matrix is not None or (experiment_name, model, measure.name) in taken)
        )
        rows = tuple(
            _row(optimizer, variant, group, measures, statuses, matrices, metrics)
            for (optimizer, variant), group in settings.items()
        )
        yield Section(experiment_name, model, stopping(experiment.protocol), measures, rows)


def _taken(trial: Trial, metrics: Mapping[tuple[str, str], float]) -> Iterable[str]:
    return (measure.name for measure in MEASURES if (trial.id, measure.name) in metrics)


def _applies(measure: Measure, experiment: ExperimentSettings) -> bool:
    return not measure.groups_only or experiment.tasks.kind == "class-incremental"


def _row(
    optimizer: str,
    variant: str,
    group: Sequence[Trial],
    measures: Sequence[Measure],
    statuses: Mapping[str, str],
    matrices: Mapping[str, Matrix],
    metrics: Mapping[tuple[str, str], float],
) -> SummaryRow:
    ended = [statuses.get(trial.id) for trial in group]
    good = [trial.id for trial, status in zip(group, ended, strict=True) if status == "ok"]
    values = {
        measure.name: Spread.of(
            measure.of_matrix(matrices[trial]) if measure.of_matrix else metrics.get((trial, measure.name), math.nan)
            for trial in good
            if measure.of_matrix is None or trial in matrices
        )
        for measure in measures
    }
    return SummaryRow(optimizer, variant, len(group), len(good), ended.count("diverged"), ended.count("failed"), values)


def stopping(protocol: Protocol) -> str:
    """One sentence: how long a task is trained, and which split decides when it ends early."""
    bound = f"{protocol.max_epochs:g} epoch{'' if protocol.max_epochs == 1 else 's'}"
    if protocol.max_steps is not None:
        bound += f" or {protocol.max_steps} steps"
    if protocol.early_stopping is None:
        return f"No early stopping: {bound} a task."
    early = protocol.early_stopping
    split = "test" if early.on == "test" else "validation"
    return f"Early stopping on {split} loss, patience {early.patience}, at most {bound} a task."


def _device(record: Mapping[str, Any]) -> str:
    provenance = record.get("provenance")
    return str(provenance.get("device", "")) if isinstance(provenance, dict) else ""
