"""Machine-readable records of a fingerprint: JSON with every number on the page, and rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from optbench.studies.fingerprint.standing import Fingerprint, Judged
from optbench.studies.fingerprint.strips import STRIPS
from optbench.studies.fingerprint.words import sentences


def record(found: Fingerprint) -> dict[str, Any]:
    """Return the complete fingerprint as plain values, which can be written as JSON."""
    entry = found.entry
    return {
        "optimizer": entry.name,
        "target": entry.target,
        "seeds": list(entry.seeds),
        "settings": {name: dict(values) for name, values in entry.settings.items()},
        "panel": found.panel.names,
        "panel_made": dict(found.panel.made),
        "strips": list(rows(found)),
        "neighbours": [
            {
                "optimizer": one.name,
                "distance": one.distance,
                "low": one.interval[0] if one.interval else None,
                "high": one.interval[1] if one.interval else None,
                "nearest_share": one.nearest,
                "strips": one.strips,
                "shares": {strip.name: share for strip, share in zip(STRIPS, one.shares, strict=True)},
            }
            for one in found.neighbours
        ],
        "learning_rate_optimum": None
        if entry.width is None
        else {"decades": entry.width.decades, "at_least": entry.width.at_least},
        "not_learnt": dict(found.not_learnt),
        "words": [one.text for one in sentences(found)],
        "remarks": list(found.remarks),
    }


def rows(found: Fingerprint) -> Iterator[dict[str, Any]]:
    """Yield one row per strip: the optimizer's value, the panel's values, and the verdicts against the references."""
    for i, one in enumerate(found.standings):
        row: dict[str, Any] = {
            "strip": one.strip.name,
            "experiment": one.strip.experiment,
            "metric": one.strip.metric,
            "direction": one.strip.of.direction,
            "value": one.centre,
            "low": one.interval[0] if one.interval else None,
            "high": one.interval[1] if one.interval else None,
            "n": one.n,
            "panel_below": one.below if one.centre is not None else None,
            "panel_n": len(one.ticks),
            "note": one.obstacle or None,
        }
        for judged in found.references:
            row |= {f"{judged[i].other}_{key}": value for key, value in _verdict(judged[i]).items()}
        row["panel"] = {tick.name: tick.centre for tick in one.ticks}
        yield row


def _verdict(one: Judged) -> dict[str, Any]:
    ends = one.result.interval
    return {
        "verdict": str(one.verdict),
        "difference": _finite(one.result.difference),
        "difference_low": _finite(ends[0]) if ends else None,
        "difference_high": _finite(ends[1]) if ends else None,
        "holm_p": one.judgement.holm_p,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
