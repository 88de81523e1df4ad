"""Reports for programs: JSON and CSV, whose keys and columns stay (README, "For programs"). Numbers are not rounded.

Undefined is null in JSON and empty in CSV. An infinite difference (a side diverged) is the text `inf` or `-inf`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optbench.metrics import METRICS
from optbench.report.summary import RunSummary, Section, Spread, Summary, SummaryRow
from optbench.stats.arms import Arm
from optbench.stats.claims import ClaimPart, JudgedClaim
from optbench.stats.comparison import ArmComparison, Comparison, MetricComparison
from optbench.stats.gates import JudgedGate
from optbench.stats.paired import PairedResult

VERSION = 1
"""Goes up when a key or a column changes its meaning or goes."""


def report_json(summary: Summary) -> str:
    """Runs, one record per metric of each optimizer setting, accuracy matrices, claims, and trials in trouble."""
    sections = summary.sections
    return _json(
        {
            "format": "optbench-report",
            "version": VERSION,
            "runs": [_run(run) for run in summary.runs],
            "results": list(_results(summary)),
            "matrices": [
                {**_row_keys(section, row), "accuracy": row.matrix.tolist()}
                for section in sections
                for row in section.rows
                if row.matrix is not None
            ],
            "claims": [_claim(run.run, claim) for run in summary.runs for claim in run.claims],
            "troubles": [asdict(trouble) for trouble in summary.troubles],
        }
    )


def report_csv(summary: Summary) -> str:
    """A line per metric of each optimizer setting, as `results` in the JSON."""
    return _csv(_RESULT_COLUMNS, _results(summary))


def comparison_json(comparison: Comparison, gates: Sequence[JudgedGate], metrics: Sequence[str] = ()) -> str:
    """Sides, remarks, one record per metric of each pair of arms, and gates."""
    return _json(
        {
            "format": "optbench-comparison",
            "version": VERSION,
            "a": comparison.a.results.run.id,
            "b": comparison.b.results.run.id,
            "remarks": list(comparison.remarks),
            "results": list(_comparisons(comparison, metrics)),
            "gates": [_gate(judged) for judged in gates],
        }
    )


def comparison_csv(comparison: Comparison, metrics: Sequence[str] = ()) -> str:
    """A line per metric of each pair of arms, as `results` in the JSON."""
    return _csv(_COMPARISON_COLUMNS, _comparisons(comparison, metrics))


_KEYS = ("run", "experiment", "model", "optimizer", "variant")
_COUNTS = ("planned", "ok", "diverged", "failed", "missing")
_SPREAD = ("n", "mean", "sd", "median", "q1", "q3", "min", "max")
_RESULT_COLUMNS = (*_KEYS, *_COUNTS, "metric", "direction", *_SPREAD)

_SIDES = tuple(f"{key}_{side}" for side in "ab" for key in ("run", "optimizer", "variant"))
_PAIRED = (
    "pairs",
    "n",
    "diverged_a",
    "diverged_b",
    "undefined",
    "median_a",
    "median_b",
    "difference",
    "low",
    "high",
    "p",
    "holm_p",
    "wins",
    "d_z",
    "rank_biserial",
)
_COMPARISON_COLUMNS = (
    "experiment",
    "model",
    *_SIDES,
    "metric",
    "direction",
    "primary",
    "verdict",
    "reason",
    "detectable",
    "same_start",
    "planned",
    *_PAIRED,
)


def _run(run: RunSummary) -> dict[str, Any]:
    return {key: value for key, value in vars(run).items() if key != "claims"}


def _row_keys(section: Section, row: SummaryRow) -> dict[str, Any]:
    return dict(zip(_KEYS, (row.run, section.experiment, section.model, row.optimizer, row.variant), strict=True))


def _results(summary: Summary) -> Iterable[dict[str, Any]]:
    for section in summary.sections:
        for row in section.rows:
            counts = {name: getattr(row, name) for name in _COUNTS}
            for metric in section.metrics:
                about = {"metric": metric, "direction": METRICS[metric].direction}
                yield {**_row_keys(section, row), **counts, **about, **_spread(row.values[metric])}


def _spread(spread: Spread | None) -> dict[str, Any]:
    if spread is None:
        return {**dict.fromkeys(_SPREAD), "n": 0}
    values = (spread.n, spread.mean, spread.sd, spread.median, *spread.quartiles, *spread.extremes)
    return dict(zip(_SPREAD, values, strict=True))


def _claim(run: str, judged: JudgedClaim) -> dict[str, Any]:
    said = judged.claim.model_dump(exclude={"models", "margin"})
    parts = [_part(part) for part in judged.parts]
    return {
        "run": run,
        "claim": judged.name,
        **said,
        "margin": judged.margin,
        "verdict": judged.verdict,
        "parts": parts,
    }


def _part(part: ClaimPart) -> dict[str, Any]:
    return {
        "model": part.model,
        "left_variant": part.left.variant,
        "right_variant": part.right.variant if isinstance(part.right, Arm) else None,
        "verdict": part.verdict,
        "reason": part.reason,
        **_paired(part.result, part.judgement.holm_p),
        "beside": {name: {"left": left, "right": right} for name, (left, right) in part.beside.items()},
    }


def _comparisons(comparison: Comparison, metrics: Sequence[str]) -> Iterable[dict[str, Any]]:
    for pair in comparison.pairs:
        for found in pair.metrics:
            if not metrics or found.metric.name in metrics:
                yield _comparison(pair, found)


def _comparison(pair: ArmComparison, found: MetricComparison) -> dict[str, Any]:
    judgement = found.judgement
    return {
        **_pair_keys(pair),
        "metric": found.metric.name,
        "direction": found.metric.direction,
        "primary": judgement is not None,
        "verdict": judgement.verdict if judgement else None,
        "reason": judgement.reason if judgement else None,
        "detectable": judgement.detectable if judgement else None,
        "same_start": pair.same_start,
        "planned": pair.planned,
        **_paired(found.result, judgement.holm_p if judgement else None),
    }


def _pair_keys(pair: ArmComparison) -> dict[str, Any]:
    sides = [value for arm in (pair.a, pair.b) for value in (arm.results.run.id, arm.optimizer, arm.variant)]
    return {"experiment": pair.a.experiment, "model": pair.a.model, **dict(zip(_SIDES, sides, strict=True))}


def _paired(result: PairedResult, holm_p: float | None) -> dict[str, Any]:
    low, high = result.interval or (None, None)
    special = {"low": low, "high": high, "holm_p": holm_p}
    return {name: special[name] if name in special else getattr(result, name) for name in _PAIRED}


def _gate(judged: JudgedGate) -> dict[str, Any]:
    return {
        "gate": judged.gate.text,
        "metric": judged.gate.metric,
        **_pair_keys(judged.pair),
        "result": judged.result,
        "reason": judged.reason,
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A value as JSON has it: no NaN, no infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
