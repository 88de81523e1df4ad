"""Report data for programs: JSON keys and csv columns, which are stable (docs/reporting.md, "For programs").

Numbers are not rounded. A difference is infinite if too many trials of one side diverged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, TypeAlias

from optbench.metrics import Metric
from optbench.report.document import Record, Records, Report, listed
from optbench.report.matching import match_record
from optbench.report.spread import Spread
from optbench.report.study import Study
from optbench.report.summary import RunSummary, Section, Summary, SummaryRow
from optbench.stats.arms import Arm
from optbench.stats.claims import ClaimPart, JudgedClaim
from optbench.stats.comparison import ArmComparison, Comparison, MetricComparison
from optbench.stats.conditions import LeftOut
from optbench.stats.gates import JudgedGate
from optbench.stats.learning import Shortcoming
from optbench.stats.matching import Match
from optbench.stats.paired import PairedResult
from optbench.stats.readings import JudgedReading, counts
from optbench.stats.results import Results
from optbench.suite.readings import layer_name


def report_records(summary: Summary) -> list[Records]:
    """Return the records of a report on runs.

    The records describe the runs, the results (one per optimizer setting and metric), accuracy matrices, claims, the
    results of studies, remarks, and the trials that diverged or failed.
    """
    runs, sections = summary.runs, summary.sections
    return [
        Records("runs", lambda: [_run(run) for run in runs]),
        listed("results", lambda: _results(summary)),
        Records(
            "matrices",
            lambda: [
                {**_row_keys(section, row), "accuracy": row.matrix.tolist()}
                for section in sections
                for row in section.rows
                if row.matrix is not None
            ],
        ),
        Records("claims", lambda: [claim_record(run.run, claim) for run in runs for claim in run.claims]),
        *(_studied(summary, study) for study in summary.studies),
        Records(
            "remarks", lambda: [{**_row_keys(section, row), "remark": text} for section, row, text in summary.remarks]
        ),
        Records("troubles", lambda: [asdict(trouble) for trouble in summary.troubles]),
    ]


def comparison_records(
    comparison: Comparison, gates: Sequence[JudgedGate], metrics: Sequence[str] = ()
) -> list[Records]:
    """Return the records of a comparison: sides, remarks, one result per pair of arms and metric, and gates."""
    return [
        Records("a", lambda: comparison.a.results.run.id),
        Records("b", lambda: comparison.b.results.run.id),
        Records("remarks", lambda: list(comparison.remarks)),
        listed("results", lambda: comparison_rows(comparison, metrics)),
        Records("gates", lambda: [_gate(judged) for judged in gates]),
    ]


def with_trials(document: Report, results: Sequence[Results]) -> Report:
    """Return `document` with an additional record for each metric of each trial, except controls.

    In csv, these records replace all others.
    """
    trials = listed("trials", lambda: (line for result in results for line in _trials(result)))
    blocks = (replace(block, lines=None) if isinstance(block, Records) else block for block in document.blocks)
    return replace(document, blocks=(*blocks, trials), columns=_TRIAL_COLUMNS)


def _trials(results: Results) -> Iterable[Record]:
    for one in results.trial_values():
        trial = one.trial
        names = (results.run.id, trial.experiment, trial.model, trial.optimizer, trial.variant)
        told = (trial.id, *names, trial.seed, trial.stage, one.status, one.metric)
        metric = results.metrics[one.metric]
        rest = (metric.direction, one.value, split_of(metric, results.split))
        yield dict(zip(_TRIAL_COLUMNS, (*told, *rest), strict=True))


KEYS = ("run", "experiment", "model", "optimizer", "variant")
COUNTS = ("planned", "ok", "diverged", "failed", "missing")
ABOVE_TARGET: Final = "above_target"
"""The column with the number of trials that ended above the target training loss on some task."""
MANY_DORMANT: Final = "many_dormant"
"""The column with the number of trials in which more than 5% of the units are dormant."""
_SPREAD = ("n", "mean", "sd", "median", "q1", "q3", "min", "max")
PAIR = ("pair_kind", "optimizer_b", "variant_b", "outside")
"""Columns for pairs of solutions: the kind (`pair`, or `null` for an arm and its controls), the other optimizer and
variant, and the number of seeds on which the pair's value lies outside the range of its two sides' null values."""
SPLIT = "split"
"""The column that names the data of accuracies: `test`, `validation` (tuning runs) or `training` (online metrics)."""
_TRIAL_COLUMNS = ("trial", *KEYS, "seed", "stage", "status", "metric", "direction", "value", SPLIT)
_LEARNING = ("guessed", "exploded")
"""Columns with the number of `ok` trials that were no better than guessing on a task right after training on it, and
with the number of `ok` trials in which the training loss exceeded ten times its initial value."""
_SIDES = tuple(f"{key}_{side}" for side in "ab" for key in ("run", "optimizer", "variant"))
_PAIRED = (
    *("pairs", "n", "diverged_a", "diverged_b", "undefined", "median_a", "median_b", "difference", "low", "high"),
    *("p", "holm_p", "wins", "d_z", "rank_biserial"),
)
COMPARISON_COLUMNS = (
    *("experiment", "model", *_SIDES, "metric", "direction", "primary", "verdict", "reason", "detectable"),
    *("same_start", "planned", *_PAIRED, "seeds_needed", *(f"{name}_{side}" for side in "ab" for name in _LEARNING)),
    *(f"{ABOVE_TARGET}_{side}" for side in "ab"),
)


def result_columns(studies: Sequence[Study[Any]]) -> tuple[str, ...]:
    """Return the columns of a report in csv: the columns of results, and those that each study adds."""
    more = [column for study in studies for column in study.columns]
    names = (*KEYS, *COUNTS, "metric", "direction", *_SPREAD, *more, SPLIT, *_LEARNING, ABOVE_TARGET, MANY_DORMANT)
    return tuple(dict.fromkeys(names))


def _run(run: RunSummary) -> dict[str, Any]:
    return {key: value for key, value in vars(run).items() if key not in ("claims", "studied", "provenance")}


def _studied(summary: Summary, study: Study[Any]) -> Records:
    every = [run.studied[study.name] for run in summary.runs]
    lines = study.lines
    return Records(
        study.name,
        lambda: [record for found in every for record in study.records(found)],
        None if lines is None else lambda: (line for found in every for line in lines(found)),
    )


def _row_keys(section: Section, row: SummaryRow) -> dict[str, Any]:
    return dict(
        zip(KEYS, (row.run, section.experiment, section.model, row.arm.optimizer, row.arm.variant), strict=True)
    )


def _results(summary: Summary) -> Iterable[Record]:
    asides = [study for study in summary.studies if study.beside]
    blank = dict.fromkeys(column for study in asides for column in study.columns)
    beside = {
        place: values
        for study in asides
        for run in summary.runs
        if study.beside
        for place, values in study.beside(run.studied[study.name]).items()
    }
    for section in summary.sections:
        for row in section.rows:
            keys, counts = _row_keys(section, row), row.arm.counts
            for name, metric in section.metrics.items():
                about = {"metric": name, "direction": metric.direction}
                values = {**spread_record(row.values[name]), **blank, **beside.get((*keys.values(), name), {})}
                told = {SPLIT: split_of(metric, row.split), **_learning(row.arm.shortcoming), **_dormant(row.arm)}
                yield {**keys, **counts, **about, **values, **told}


def split_of(metric: Metric, split: str) -> str:
    """Return the split on which a metric's accuracies are measured: `training` for an online metric, else the run's.

    split: the run's split.
    """
    return "training" if metric.kind == "online" else split


def _learning(found: Shortcoming | None, side: str = "") -> dict[str, int]:
    return {f"{name}{side}": getattr(found, name) if found else 0 for name in _LEARNING}


def _dormant(arm: Arm) -> dict[str, int]:
    return {MANY_DORMANT: len(arm.many_dormant.seeds) if arm.many_dormant else 0}


def spread_record(spread: Spread | None) -> Record:
    """Return the statistics of a spread by column; for None, `n` is 0 and all others are None."""
    if spread is None:
        return {**dict.fromkeys(_SPREAD), "n": 0}
    values = (spread.n, spread.mean, spread.sd, spread.median, *spread.quartiles, *spread.extremes)
    return dict(zip(_SPREAD, values, strict=True))


def claim_record(run: str, judged: JudgedClaim) -> dict[str, Any]:
    """Return the record of a claim with its verdict and parts."""
    said = judged.claim.model_dump(exclude={"models", "margin", "readings"}) | {"metric": judged.claim.primary.name}
    if judged.claim.readings is not None:
        said["readings"] = judged.claim.readings.model_dump(exclude={"measured"})
    layers = {layer_name(layer): layer for layer in judged.claim.readings.layers} if judged.claim.readings else {}
    parts = [_part(part, layers) for part in judged.parts]
    left_out = [_left_out(found) for found in judged.left_out]
    if judged.claim.matched is not None:
        said["unmatched"] = [_unmatched(pair) for pair in judged.unmatched]
    names = {"run": run, "claim": judged.name}
    return {**names, **said, "margin": judged.margin, "verdict": judged.verdict, "parts": parts, "left_out": left_out}


def _not_learnt(side: Arm | float) -> dict[str, int] | None:
    """Return the number of a side's trials that failed to learn a task, by kind of failure; None if there are none."""
    return _learning(side.shortcoming) if isinstance(side, Arm) and side.shortcoming else None


def _above_target(side: Arm | float) -> int:
    return side.count(ABOVE_TARGET) if isinstance(side, Arm) else 0


def _left_out(found: LeftOut) -> dict[str, Any]:
    unmet = [{"metric": u.metric, "mean": u.mean, "n": u.n, "planned": u.planned} for u in found.unmet]
    return {"model": found.arm.model, "optimizer": found.arm.optimizer, "variant": found.arm.variant, "unmet": unmet}


def _unmatched(pair: Match) -> dict[str, Any]:
    names = {f"{side}_variant": arm.variant for side, arm in (("left", pair.left), ("right", pair.right))}
    return {"model": pair.left.model, **names, **match_record(pair)}


Layers: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The settings of each layer in a claim's readings, by layer name."""


def _part(part: ClaimPart, layers: Layers) -> dict[str, Any]:
    return {
        "model": part.model,
        "left_variant": part.left.variant,
        "right_variant": part.right.variant if isinstance(part.right, Arm) else None,
        "verdict": part.verdict,
        "reason": part.reason,
        **_paired(part.result, part.judgement.holm_p),
        "beside": {name: {"left": left, "right": right} for name, (left, right) in part.beside.items()},
        "seeds_needed": part.judgement.seeds_needed,
        ABOVE_TARGET: {"left": _above_target(part.left), "right": _above_target(part.right)},
        "not_learnt": {"left": _not_learnt(part.left), "right": _not_learnt(part.right)},
        **({"match": match_record(part.match)} if part.match else {}),
        **({"readings": _readings(part.readings, layers)} if part.readings else {}),
    }


def _readings(found: Sequence[JudgedReading], layers: Layers) -> dict[str, Any]:
    """Return the counts of readings by result, and every reading with its relative difference."""
    return {
        **{str(says): n for says, n in counts(found).items()},
        "cells": [_reading(reading, layers[reading.cell.layer]) for reading in found],
    }


def _reading(reading: JudgedReading, layer: Mapping[str, Any]) -> dict[str, Any]:
    relative = dict(zip(("relative", "relative_low", "relative_high"), reading.relative or (None,) * 3, strict=True))
    told = {"metric": reading.cell.metric, "layer": layer, "data": reading.cell.data}
    about = {"name": reading.cell.name, "direction": reading.metric.direction, "primary": reading.primary}
    said = {"says": reading.says, "reason": reading.reason}
    paired = {key: value for key, value in _paired(reading.result, None).items() if key != "holm_p"}
    return {**told, **about, **said, **paired, **relative}


def comparison_rows(comparison: Comparison, metrics: Sequence[str]) -> Iterable[dict[str, Any]]:
    everything = ((pair, found) for pair in comparison.pairs for found in pair.metrics)
    return (_comparison(pair, found) for pair, found in everything if not metrics or found.metric.name in metrics)


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
        **{f"{ABOVE_TARGET}_{side}": _above_target(arm) for side, arm in (("a", pair.a), ("b", pair.b))},
    }


def _pair_keys(pair: ArmComparison) -> dict[str, Any]:
    sides = [value for arm in (pair.a, pair.b) for value in (arm.results.run.id, arm.optimizer, arm.variant)]
    return {"experiment": pair.a.experiment, "model": pair.a.model, **dict(zip(_SIDES, sides, strict=True))}


def _paired(result: PairedResult, holm_p: float | None) -> dict[str, Any]:
    low, high = result.interval or (None, None)
    special = {"low": low, "high": high, "holm_p": holm_p}
    return {name: special[name] if name in special else getattr(result, name) for name in _PAIRED}


def _gate(judged: JudgedGate) -> dict[str, Any]:
    asked = {"gate": judged.gate.text, "metric": judged.gate.metric}
    return {**asked, **_pair_keys(judged.pair), "result": judged.result, "reason": judged.reason}
