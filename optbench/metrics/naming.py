"""Checks of metric names in a suite."""

from __future__ import annotations

from collections.abc import Iterable

from optbench.errors import UsageError, unknown
from optbench.metrics.catalog import DEFAULT, DEFAULT_METRICS, DERIVED, METRICS, PAIR_METRICS, select
from optbench.metrics.metric import Kind


def check_metric(name: str) -> None:
    """Raise UsageError unless `name` is a registered metric of single trials."""
    if select([name])[0].kind == "pair":
        raise UsageError(f"'{name}' compares two solutions: list it in an experiment's 'pairs', under 'metrics'")


def derived_with(names: Iterable[str]) -> set[Kind]:
    """Return the kinds whose registered metrics are all derived if a suite's metrics are `names`.

    Metrics of the accuracy matrix and of cost are always derived. If a suite names any metric of
    online accuracy, all metrics of online accuracy are derived. The same applies to metrics of pruning curves.
    """
    return {"continual", "cost", *(METRICS[name].kind for name in names if name in METRICS)} & {*DERIVED}


def check_taken(name: str, listed: Iterable[str] | None) -> None:
    """Raise UsageError if `name` is a registered metric that a suite with this list of metrics does not measure.

    listed: the suite's list of metrics; None if it has none.
    """
    listed = (DEFAULT,) if listed is None else listed
    chosen = {one for entry in listed for one in (DEFAULT_METRICS if entry == DEFAULT else (entry,))}
    if name in METRICS and name not in chosen and METRICS[name].kind not in derived_with(chosen):
        raise UsageError(unmeasured(name))


def unmeasured(name: str, target: str | None = None) -> str:
    """Return the message about a metric that exists but is not measured.

    target: the entry to add to the suite's `metrics`; None if this is the metric's name.
    """
    return f"expected a metric that the experiment measures, got '{name}'; add {target or 'it'} to 'metrics'"


def check_pair_metric(name: str) -> None:
    """Raise UsageError unless `name` is a metric of two solutions."""
    if name not in PAIR_METRICS:
        raise UsageError(unknown("metric of pairs", name, PAIR_METRICS))
