"""Machine-readable records of twins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optbench.metrics import METRICS
from optbench.report.document import Record
from optbench.report.records import KEYS, PAIR, spread_record
from optbench.report.spread import Spread
from optbench.studies.twins.statistics import Twins

WEIGHT_DISTANCE = "weight_distance"
PLACE = ("task", "step")
"""Columns of twins (`pair_kind` is `twins`): the task and step at which a distance was measured."""


def twin_records(found: Sequence[Twins]) -> Iterable[Record]:
    """Yield one record per pair of twins, with an entry for every evaluation."""
    for twins in found:
        yield {
            **dict(zip(KEYS[:3], (twins.results.run.id, twins.experiment, twins.model), strict=True)),
            "a": twins.a,
            "b": twins.b,
            "planned": twins.planned,
            "metric": WEIGHT_DISTANCE,
            "sketch_size": twins.size,
            "reason": twins.reason,
            "points": [
                {**dict(zip(PLACE, place, strict=True)), **spread_record(Spread.of(twins.at(place)))}
                for place in twins.places
            ],
        }


def twin_lines(found: Sequence[Twins]) -> Iterable[Record]:
    """Yield one record for each evaluation of each pair of twins."""
    for twins in found:
        if twins.sides is None:
            continue
        a, b = twins.sides
        keys = (twins.results.run.id, twins.experiment, twins.model, a.optimizer, a.variant)
        for place in twins.places:
            yield {
                **dict(zip(KEYS, keys, strict=True)),
                **dict(zip(PAIR, ("twins", b.optimizer, b.variant, None), strict=True)),
                **dict(zip(PLACE, place, strict=True)),
                "planned": twins.planned,
                "metric": WEIGHT_DISTANCE,
                "direction": METRICS[WEIGHT_DISTANCE].direction,
                **spread_record(Spread.of(twins.at(place))),
            }
