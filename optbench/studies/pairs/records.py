"""Machine-readable records of paired solutions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optbench.metrics import METRICS
from optbench.report.document import Record
from optbench.report.records import KEYS, PAIR, spread_record
from optbench.report.spread import Spread
from optbench.stats.arms import Arm
from optbench.studies.pairs.statistics import SolutionPair


def pair_records(found: Sequence[SolutionPair]) -> Iterable[Record]:
    """Yield one record per metric for each pair of arms, and for each arm paired with its controls (the arm's null)."""
    nulls: dict[tuple[Any, ...], Record] = {}
    for pair in found:
        place = (pair.run, pair.experiment, pair.model)
        for metric, measured in pair.measures.items():
            yield _pair(place, pair.a, pair.b, "pair", metric, pair.planned, measured.values, measured.outside)
            for side, null in ((pair.a, measured.null_a), (pair.b, measured.null_b)):
                if null is not None:
                    record = _pair(place, side, side, "null", metric, pair.planned, null, None)
                    nulls[*place, *side.key, metric] = record
    yield from nulls.values()


def _pair(
    place: tuple[str, str, str],
    a: Arm,
    b: Arm,
    kind: str,
    metric: str,
    planned: int,
    values: Mapping[int, float],
    outside: tuple[int, int] | None,
) -> Record:
    return {
        **dict(zip(KEYS, (*place, a.optimizer, a.variant), strict=True)),
        **dict(zip(PAIR, (kind, b.optimizer, b.variant, outside[0] if outside else None), strict=True)),
        "planned": planned,
        "metric": metric,
        "direction": METRICS[metric].direction,
        **spread_record(Spread.of(values.values())),
    }
