"""Machine-readable records of switched optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from optbench.report.document import Record
from optbench.report.study import ResultKey
from optbench.studies.switching.statistics import Estimate, Side, Switching, SwitchPoint

SWITCH = ("switch_step", "switch_statistic", "switch_value", "switch_low", "switch_high", "switch_n")
"""Columns of a switched optimizer's results: k, then the statistic (`rho`, or the `difference` from the pure arm), its
value, the ends of its 95% interval, and its number of seeds."""


def switching_records(found: Sequence[Switching]) -> Iterable[Record]:
    """Return one record per switch, with an entry for every k."""
    return map(_record, found)


def beside_results(found: Sequence[Switching]) -> Mapping[ResultKey, Record]:
    """Return the values of the `SWITCH` columns for every result of a switched optimizer."""
    return {
        (one.results.run.id, *one.place, point.arm.optimizer, point.arm.variant, metric): _switched(one, point, metric)
        for one in found
        for point in one.points
        for metric in one.metrics
    }


def _switched(switching: Switching, point: SwitchPoint, metric: str) -> Record:
    found = _estimate(switching.estimate(point, metric))
    values = (point.k, switching.statistic, *(found[key] for key in ("value", "low", "high", "n")))
    return dict(zip(SWITCH, values, strict=True))


def _estimate(estimate: Estimate) -> Record:
    low, high = estimate.interval or (None, None)
    return {"value": estimate.value, "low": low, "high": high, "n": estimate.n, "reason": estimate.reason}


def _record(found: Switching) -> Record:
    sides: tuple[Side, ...] = ("first", "then")
    points = []
    for point in found.points:
        barriers = {side: found.barrier(point, side) for side in sides}
        points.append(
            {
                "variant": point.arm.variant,
                "step": point.k,
                "whole": point.whole,
                found.statistic: {metric: _estimate(found.estimate(point, metric)) for metric in found.metrics},
                "barriers": {side: _estimate(barrier) for side, barrier in barriers.items() if barrier},
            }
        )
    experiment, model = found.place
    return {
        "run": found.results.run.id,
        "experiment": experiment,
        "model": model,
        "optimizer": found.optimizer,
        "kind": found.kind,
        "first": found.first,
        "then": found.then,
        "state": found.state,
        "pure_first": found.pure_first.label if found.pure_first else None,
        "pure_then": found.pure_then.label if found.pure_then else None,
        "points": points,
    }
