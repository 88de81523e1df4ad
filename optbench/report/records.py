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

from optbench.errors import CONTROL, escaped
from optbench.metrics import METRICS
from optbench.report.summary import RunSummary, Section, Spread, Summary, SummaryRow
from optbench.stats.arms import Arm
from optbench.stats.claims import ClaimPart, JudgedClaim
from optbench.stats.comparison import ArmComparison, Comparison, MetricComparison
from optbench.stats.conditions import LeftOut
from optbench.stats.gates import JudgedGate
from optbench.stats.learning import Shortcoming
from optbench.stats.paired import PairedResult
from optbench.studies.pairs.statistics import Side as PairSide
from optbench.studies.switching.statistics import Estimate, Side, Switching, SwitchPoint
from optbench.studies.tuning.statistics import LEARNING, TriedSetting, TunedOptimizer
from optbench.studies.twins.statistics import Twins

WEIGHT_DISTANCE = "weight_distance"
VERSION = 1
"""Goes up when a key or a column changes its meaning or goes."""


def report_json(summary: Summary) -> str:
    """Runs, one record per metric of each optimizer setting, accuracy matrices, claims, switches, pairs, twins, what
    tuning runs choose, trials in trouble."""
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
            "switches": [_switching(found) for run in summary.runs for found in run.switchings],
            "pairs": list(_pairs(summary)),
            "twins": [_twins_record(twins) for run in summary.runs for twins in run.twins],
            "tunings": [_tuning_record(tuned) for run in summary.runs for tuned in run.tunings],
            "remarks": [{**_row_keys(section, row), "remark": text} for section, row, text in summary.remarks],
            "troubles": [asdict(trouble) for trouble in summary.troubles],
        }
    )


def report_csv(summary: Summary) -> str:
    """A line per metric of each optimizer setting, as `results` in the JSON; then those of `pairs`, `twins` and
    `tunings`."""
    return _csv(_RESULT_COLUMNS, [*_results(summary), *_pairs(summary), *_twins(summary), *_tunings(summary)])


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
_SWITCH = ("switch_step", "switch_statistic", "switch_value", "switch_low", "switch_high", "switch_n")
"""Of results read against the step of a switch: its k, and `rho`, or the `difference` to the pure arm."""
_PAIR = ("pair_kind", "optimizer_b", "variant_b", "outside")
"""Of one solution against another: `pair`, or `null` for an arm and its controls; the other side; and the number of
seeds on which a pair lies outside the range of the null values of its two sides."""
_PLACE = ("task", "step")
"""Of twins (`pair_kind` is `twins`): where in training they were that far from each other."""
_SPLIT = "split"
"""The data that accuracies are of: `test`, or `validation` in a tuning run."""
_CHOICE = ("learns", "chosen")
"""Of a setting that was tried (`pair_kind` is `tuning`): whether it learns enough, and whether it is the one chosen. A
line is of the mean over the models that settings are judged on; `model` names one, or several with + between."""
_LEARNING = ("guessed", "exploded")
"""How many of the trials that are ok were no better than guessing on a task that they had just been trained on, and in
how many the training loss exceeded ten times its start."""
_RESULT_COLUMNS = (
    *(*_KEYS, *_COUNTS, "metric", "direction", *_SPREAD, *_SWITCH, *_PAIR, *_PLACE, _SPLIT, *_CHOICE),
    *_LEARNING,
)

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
    "seeds_needed",
    *(f"{name}_{side}" for side in "ab" for name in _LEARNING),
)


def _run(run: RunSummary) -> dict[str, Any]:
    apart = ("claims", "switchings", "pairs", "twins", "tunings")
    return {key: value for key, value in vars(run).items() if key not in apart}


def _row_keys(section: Section, row: SummaryRow) -> dict[str, Any]:
    return dict(zip(_KEYS, (row.run, section.experiment, section.model, row.optimizer, row.variant), strict=True))


def _results(summary: Summary) -> Iterable[dict[str, Any]]:
    switched = {
        (found.results.run.id, *found.place, point.arm.optimizer, point.arm.variant, metric): (found, point)
        for run in summary.runs
        for found in run.switchings
        for point in found.points
        for metric in found.metrics
    }
    for section in summary.sections:
        for row in section.rows:
            counts = {name: getattr(row, name) for name in _COUNTS}
            for metric in section.metrics:
                about = {"metric": metric, "direction": section.metrics[metric].direction}
                keys = _row_keys(section, row)
                at = switched.get((*keys.values(), metric))
                values = {**_spread(row.values[metric]), **_switched(at, metric)}
                yield {**keys, **counts, **about, **values, _SPLIT: row.split, **_learning(row.shortcoming)}


def _learning(found: Shortcoming | None, side: str = "") -> dict[str, int]:
    return {f"{name}{side}": getattr(found, name) if found else 0 for name in _LEARNING}


def _pairs(summary: Summary) -> Iterable[dict[str, Any]]:
    """A record per measure of each pair of arms, and of each arm with its controls, which is its null."""
    for run in summary.runs:
        nulls: dict[tuple[Any, ...], dict[str, Any]] = {}
        for pair in run.pairs:
            place = (pair.run, pair.experiment, pair.model)
            for metric, measured in pair.measures.items():
                yield _pair(place, pair.a, pair.b, "pair", metric, pair.planned, measured.values, measured.outside)
                for side, null in ((pair.a, measured.null_a), (pair.b, measured.null_b)):
                    if null is not None:
                        found = _pair(place, side, side, "null", metric, pair.planned, null, None)
                        nulls[*place, side, metric] = found
        yield from nulls.values()


def _pair(
    place: tuple[str, str, str],
    a: PairSide,
    b: PairSide,
    kind: str,
    metric: str,
    planned: int,
    values: Mapping[int, float],
    outside: tuple[int, int] | None,
) -> dict[str, Any]:
    return {
        **dict(zip(_KEYS, (*place, a.optimizer, a.variant), strict=True)),
        **dict(zip(_PAIR, (kind, b.optimizer, b.variant, outside[0] if outside else None), strict=True)),
        "planned": planned,
        "metric": metric,
        "direction": METRICS[metric].direction,
        **_spread(Spread.of(values.values())),
    }


def _twins_record(twins: Twins) -> dict[str, Any]:
    points = [{"task": task, "step": step, **_spread(Spread.of(twins.at((task, step))))} for task, step in twins.places]
    return {
        **dict(zip(_KEYS[:3], (twins.results.run.id, twins.experiment, twins.model), strict=True)),
        "a": twins.a,
        "b": twins.b,
        "planned": twins.planned,
        "metric": WEIGHT_DISTANCE,
        "sketch_size": twins.size,
        "reason": twins.reason,
        "points": points,
    }


def _twins(summary: Summary) -> Iterable[dict[str, Any]]:
    """A record per evaluation of each pair of twins."""
    for twins in (twins for run in summary.runs for twins in run.twins if twins.sides):
        assert twins.sides is not None
        a, b = twins.sides
        keys = (twins.results.run.id, twins.experiment, twins.model, a.optimizer, a.variant)
        for place in twins.places:
            yield {
                **dict(zip(_KEYS, keys, strict=True)),
                **dict(zip(_PAIR, ("twins", b.optimizer, b.variant, None), strict=True)),
                **dict(zip(_PLACE, place, strict=True)),
                "planned": twins.planned,
                "metric": WEIGHT_DISTANCE,
                "direction": METRICS[WEIGHT_DISTANCE].direction,
                **_spread(Spread.of(twins.at(place))),
            }


def _tuning_record(tuned: TunedOptimizer) -> dict[str, Any]:
    """Everything by the rule of the suite: the score is the mean of `metric` over models and seeds."""
    return {
        "run": tuned.run,
        "experiment": tuned.experiment,
        "models": tuned.models,
        "optimizer": tuned.optimizer,
        "seeds": tuned.seeds,
        "metric": tuned.metric,
        "direction": METRICS[tuned.metric].direction,
        "learning_margin": tuned.margin,
        "sampler": tuned.sampler,
        "space": tuned.space,
        "chosen": tuned.chosen.variant if tuned.chosen else None,
        "hyperparameters": tuned.chosen.hyperparameters if tuned.chosen else None,
        "edges": tuned.ends,
        "settings": [
            {
                "variant": setting.variant,
                "hyperparameters": setting.hyperparameters,
                **{name: getattr(setting, name) for name in _COUNTS},
                "score": setting.score,
                LEARNING: setting.learning,
                **_choice(tuned, setting),
            }
            for setting in tuned.settings
        ],
    }


def _tunings(summary: Summary) -> Iterable[dict[str, Any]]:
    """A record per measure of each setting that was tried: the rule's metric, and learning accuracy."""
    for tuned in (tuned for run in summary.runs for tuned in run.tunings):
        for setting in tuned.settings:
            keys = (tuned.run, tuned.experiment, "+".join(tuned.models), tuned.optimizer, setting.variant)
            for metric in dict.fromkeys([tuned.metric, LEARNING]):
                yield {
                    **dict(zip(_KEYS, keys, strict=True)),
                    **{name: getattr(setting, name) for name in _COUNTS},
                    "metric": metric,
                    "direction": METRICS[metric].direction,
                    **_spread(Spread.of(setting.by_seed.get(metric, ()))),
                    _PAIR[0]: "tuning",
                    _SPLIT: "validation",
                    **_choice(tuned, setting),
                }


def _choice(tuned: TunedOptimizer, setting: TriedSetting) -> dict[str, bool]:
    return dict(zip(_CHOICE, (setting.learns, setting is tuned.chosen), strict=True))


def _spread(spread: Spread | None) -> dict[str, Any]:
    if spread is None:
        return {**dict.fromkeys(_SPREAD), "n": 0}
    values = (spread.n, spread.mean, spread.sd, spread.median, *spread.quartiles, *spread.extremes)
    return dict(zip(_SPREAD, values, strict=True))


def _switched(at: tuple[Switching, SwitchPoint] | None, metric: str) -> dict[str, Any]:
    if at is None:
        return dict.fromkeys(_SWITCH)
    switching, point = at
    found = _estimate(switching.estimate(point, metric))
    values = (point.k, switching.statistic, *(found[key] for key in ("value", "low", "high", "n")))
    return dict(zip(_SWITCH, values, strict=True))


def _estimate(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval or (None, None)
    return {"value": estimate.value, "low": low, "high": high, "n": estimate.n, "reason": estimate.reason}


def _switching(found: Switching) -> dict[str, Any]:
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
        "left_out": [_left_out(found) for found in judged.left_out],
    }


def _not_learnt(side: Arm | float) -> dict[str, int] | None:
    """How many of a side's trials did not learn some task, by kind; None where each of them learnt every task."""
    if not isinstance(side, Arm) or side.shortcoming is None:
        return None
    return {name: getattr(side.shortcoming, name) for name in _LEARNING}


def _left_out(found: LeftOut) -> dict[str, Any]:
    unmet = [{"metric": u.metric, "mean": u.mean, "n": u.n, "planned": u.planned} for u in found.unmet]
    return {"model": found.arm.model, "optimizer": found.arm.optimizer, "variant": found.arm.variant, "unmet": unmet}


def _part(part: ClaimPart) -> dict[str, Any]:
    return {
        "model": part.model,
        "left_variant": part.left.variant,
        "right_variant": part.right.variant if isinstance(part.right, Arm) else None,
        "verdict": part.verdict,
        "reason": part.reason,
        **_paired(part.result, part.judgement.holm_p),
        "beside": {name: {"left": left, "right": right} for name, (left, right) in part.beside.items()},
        "seeds_needed": part.judgement.seeds_needed,
        "not_learnt": {"left": _not_learnt(part.left), "right": _not_learnt(part.right)},
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
        "seeds_needed": judgement.seeds_needed if judgement else None,
        **_learning(pair.a.shortcoming, "_a"),
        **_learning(pair.b.shortcoming, "_b"),
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
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    # Escaped in JSON's own way: what it leaves as it is may act on a terminal, or be no character at all.
    return CONTROL.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text) + "\n"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        plain = {key: _plain(value) for key, value in row.items()}
        writer.writerow({key: escaped(value) if isinstance(value, str) else value for key, value in plain.items()})
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
