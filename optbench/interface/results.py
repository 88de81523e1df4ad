"""A run's results in Python: tables, values and verdicts as pandas objects."""

from __future__ import annotations

import functools
import html
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from optbench.counting import count
from optbench.errors import UsageError, unknown
from optbench.interface.arguments import suggesting
from optbench.report.records import comparison_rows
from optbench.report.spread import Spread, spread_text
from optbench.report.summary import Summary, summarise
from optbench.stats import comparison as pairing
from optbench.stats.arms import Status
from optbench.stats.results import Results, read_results
from optbench.store import RunDirectory, find_run, read_runs
from optbench.store import read_run as read_stored
from optbench.store.tables import ALL_TABLES, KEY_COLUMNS
from optbench.store.values import SUMMARY, SUMMED, summary_table

ARM = ["experiment", "model", "optimizer", "variant"]
_COUNTS = get_args(Status)


class Run:
    """A run: its tables, values and summaries. Controls are left out unless requested."""

    def __init__(self, stored: RunDirectory) -> None:
        self._stored = stored

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._stored.path

    @property
    def id(self) -> str:
        """The run's id, the name of its directory."""
        return self._stored.id

    @property
    def status(self) -> str:
        """`complete`, `interrupted`, `failed` or `running`; a killed run stays `running`."""
        return str(self._stored.record.get("status"))

    def table(self, name: str, *, controls: bool = False) -> pd.DataFrame:
        """Return a table of the run: `trials`, `accuracy`, `summary`, `metrics`, `pairs`, ...

        controls: whether to include the trials with stage `control`, which were trained only for comparison.

        Raises:
            UsageError: there is no table of this name.
            StoreError: the table is damaged.
        """
        stored = self._stored
        if name == SUMMARY:
            tables = {table: stored.table(table) for table in SUMMED}
            planned = (*self._results.trials, *self._results.controls)
            found = summary_table(tables, self._results.metrics, planned)
        elif name in ALL_TABLES:
            found = stored.table(name)
        elif name == "pairs":
            found = stored.pairs
        else:
            raise UsageError(unknown("table", name, [*ALL_TABLES, SUMMARY, "pairs"]))
        table: pd.DataFrame = found.to_pandas()
        return table if controls or "stage" not in table else table[table["stage"] != "control"].reset_index(drop=True)

    def values(self, *, controls: bool = False) -> pd.DataFrame:
        """Return one row per trial and metric: key columns, `status`, `metric`, and the `value` at the end of training.

        Derived metrics such as forgetting are included. Undefined values are NaN, including nearly all values of
        diverged trials.
        """
        rows = []
        for found in self._results.trial_values(controls=controls):
            t = found.trial
            keys = (t.id, t.experiment, t.model, t.optimizer, t.variant, t.seed, t.stage)
            rows.append((*keys, found.status, found.metric, found.value))
        return pd.DataFrame(rows, columns=[*KEY_COLUMNS, "status", "metric", "value"])

    def summary(self, metric: str | None = None) -> pd.DataFrame:
        """Return one row per setting and metric: n, mean, sd, median, quartiles, and number of trials of each status.

        As in reports, the statistics are taken over the seeds with status `ok`.

        metric: the only metric to include; None for all.

        Raises:
            UsageError: the run did not measure this metric.
        """
        rows = []
        for section in self._summary.sections:
            for row in section.rows:
                keys = (section.experiment, section.model, row.arm.optimizer, row.arm.variant)
                counts = [row.arm.counts[key] for key in _COUNTS]
                rows += [(*keys, name, *_spread(row.values[name]), *counts) for name in section.metrics]
        spread = ["n", "mean", "sd", "median", "q1", "q3"]
        table = pd.DataFrame(rows, columns=[*ARM, "metric", *spread, *_COUNTS])
        if metric is None:
            return table
        if metric not in set(table["metric"]):
            raise UsageError(unknown("metric", metric, table["metric"].unique()))
        return table[table["metric"] == metric].reset_index(drop=True)

    @functools.cached_property
    def _results(self) -> Results:
        return read_results(self._stored)

    @functools.cached_property
    def _summary(self) -> Summary:
        return summarise([self._results], ())

    def _overview(self) -> pd.DataFrame:
        """Return one row per setting: mean ± standard deviation of the metrics that reports show first."""
        lines = []
        for section in self._summary.sections:
            shown = [measure for measure in section.measures if measure.topic in ("learning", "solution")]
            for row in section.rows:
                keys = (section.experiment, section.model, row.arm.optimizer, row.arm.variant)
                trials = row.arm.counts
                counts = {"trials": trials["ok"]} | {key: trials[key] for key in _COUNTS[1:] if trials[key]}
                values = {measure.name: spread_text(row.values[measure.name], 3) for measure in shown}
                lines.append({**dict(zip(ARM, keys, strict=True)), **counts, **values})
        return pd.DataFrame(lines, dtype=object).fillna("")

    def __repr__(self) -> str:
        counts = Counter(map(self._results.status, self._stored.table("trials")["trial"].to_pylist()))
        said = ", ".join(f"{n} {status}" for status, n in sorted(counts.items(), key=lambda one: one[0] != "ok"))
        return f"Run({str(self.path)!r}): {self.status}, {count(sum(counts.values()), 'trial')} ({said or 'none'})"

    def __str__(self) -> str:
        return f"{self!r}\n{self._overview().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self._overview().to_html(index=False)}"


def read_run(run: str | Path | Run, runs_dir: str | Path = "runs") -> Run:
    """Read a run, given as `latest`, an id in `runs_dir`, or a directory.

    Raises:
        StoreError: there is no such run, or it cannot be read.

    Example:
        >>> run = read_run("latest")
        >>> run.status
        'complete'
        >>> run.summary("forgetting")[["optimizer", "n", "mean"]].round(3).values.tolist()
        [['sgd', 7, 0.1], ['adam', 7, 0.2]]
    """
    return run if isinstance(run, Run) else Run(read_stored(find_run(str(run), Path(runs_dir))))


@suggesting
def compare(
    run: str | Path | Run,
    a: str | None = None,
    b: str | None = None,
    *,
    against: str | Path | Run | None = None,
    metric: str | Sequence[str] | None = None,
    experiments: Sequence[str] = (),
    force: bool = False,
    runs_dir: str | Path = "runs",
) -> pd.DataFrame:
    """Compare two optimizers, from the same run or two runs, seed by seed, with the verdicts of `optbench compare`.

    Args:
        run: the run that contains `a`, the side that the verdicts are about.
        a: OPTIMIZER or OPTIMIZER/VARIANT; None for all optimizers that are in both runs.
        b: the optimizer on the other side, in the same form as `a`.
        against: the run that contains `b`; None if it is `run`.
        metric: the metric or metrics to compare; None for all.
        experiments: the experiments to compare; all if empty.
        force: whether to compare runs even if their suites, seeds or versions of the metrics differ.

    Returns a table with one row per experiment, model, pair of settings and metric; `verdict` is None for exploratory
    metrics.

    Raises:
        UsageError: a name is unknown.
        ComparisonError: the runs cannot be compared, or no seed finished on both sides.

    Example:
        >>> found = compare("latest", "sgd", "adam", metric="forgetting")
        >>> found[["metric", "verdict", "difference"]].round(3).values.tolist()
        [['forgetting', 'better', -0.1]]
    """
    first = read_run(run, runs_dir)
    second = first if against is None else read_run(against, runs_dir)
    if first is not second:
        # by path, which distinguishes runs with equal ids
        first, second = (Run(stored) for stored in read_runs([first.path, second.path]))
    sides = [pairing.Selection.of(side._results, named or "") for side, named in ((first, a), (second, b))]
    metrics = [metric] if isinstance(metric, str) else list(metric or ())
    for name in metrics:
        if name not in {**first._results.metrics, **second._results.metrics}:
            raise UsageError(unknown("metric", name, first._results.metrics))
    found = pairing.compare(*sides, experiments=experiments, force=force)
    found.check_paired()
    for remark in found.remarks:
        warnings.warn(remark, stacklevel=3)  # the caller's line, skipping `suggesting`
    return pd.DataFrame(list(comparison_rows(found, metrics)))


def _spread(spread: Spread | None) -> tuple[Any, ...]:
    if spread is None:
        return (0, None, None, None, None, None)
    return (spread.n, spread.mean, spread.sd, spread.median, *spread.quartiles)
