"""Readings of a claim: the result of each, next to a verdict that depends only on the primary reading."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from optbench.plan import Trial
from optbench.stats.claims import ClaimVerdict, JudgedClaim, judge_claims
from optbench.stats.readings import JudgedReading, Says, counts
from optbench.store.tables import Row
from tests.readings_runs import made, suite_text
from tests.written_runs import results_of, rows_of, write_run

METRICS = ("effective_rank", "stable_rank", "pca99", "srank", "participation_ratio")
APART = {"effective_rank": -3.0, "stable_rank": 2.0, "pca99": 0.0, "srank": -0.2, "participation_ratio": 4.0}
"""The difference a - b, in units of the spread over seeds, which is 1."""


def noise(trial: Trial, metric: str) -> float:
    return float(np.random.default_rng([trial.seed, METRICS.index(metric), trial.optimizer == "a"]).normal())


def value(trial: Trial, metric: str, data: str) -> float | None:
    """Return values whose differences are reversed on the last task."""
    sign = 1 if data == "pooled" else -1
    return 20 + noise(trial, metric) + (4 * sign * APART[metric] if trial.optimizer == "a" else 0.0)


def judged(path: Path) -> JudgedClaim:
    return judge_claims(results_of(path))[0]


def says(readings: tuple[JudgedReading, ...]) -> dict[tuple[str, str], Says]:
    return {(reading.cell.name, reading.cell.data): reading.says for reading in readings}


def test_every_reading_reports_the_result_of_its_own_test(tmp_path: Path) -> None:
    claim = judged(made(tmp_path, METRICS, value, data="pooled, last", seeds=8))
    [part] = claim.parts
    found = says(part.readings)
    assert len(found) == 10
    for (metric, data), said in found.items():
        trials = results_of(tmp_path / "runs" / "made").trials
        a, b = (np.array([value(t, metric, data) for t in trials if t.optimizer == side]) for side in "ab")
        p = wilcoxon(a - b).pvalue
        expected = "open" if p > 0.05 else "higher" if np.median(a - b) > 0 else "lower"
        assert said == expected, (metric, data)
    assert {found["effective_rank", "pooled"], found["effective_rank", "last"]} == {Says.LOWER, Says.HIGHER}
    assert counts(part.readings)[Says.UNDEFINED] == 0
    assert sum(counts(part.readings).values()) == 10


def test_the_verdict_equals_that_of_a_claim_about_the_primary_alone(tmp_path: Path) -> None:
    for primary in ("effective_rank", "pca99", "participation_ratio"):
        read = judged(made(tmp_path, METRICS, value, name=f"read-{primary}", primary=primary))
        text = suite_text(METRICS)
        start = text.index("    readings:")
        plain = text[:start].replace("[hoyer]", f"[{', '.join(METRICS)}]") + f"    metric: {primary}\n"

        def rows(trial: Trial) -> list[Row]:
            values = {metric: value(trial, metric, "pooled") for metric in METRICS}
            return rows_of("ok", [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]], values, init_hash=str(trial.seed))

        alone = judged(write_run(tmp_path, plain, rows, name=f"alone-{primary}"))
        assert (read.verdict, read.margin) == (alone.verdict, alone.margin)
        assert [p.judgement for p in read.parts] == [p.judgement for p in alone.parts]
        assert [p.result for p in read.parts] == [p.result for p in alone.parts]
        assert alone.parts[0].readings == ()
        [primary_reading] = [reading for reading in read.parts[0].readings if reading.primary]
        assert primary_reading.cell.name == primary
        assert primary_reading.result == read.parts[0].result


def test_the_primary_reading_can_be_on_the_last_task(tmp_path: Path) -> None:
    data = "pooled, last"
    primary = "effective_rank, data: last"
    claim = judged(made(tmp_path, METRICS, value, data=data, primary=primary))
    assert claim.verdict is ClaimVerdict.CONTRADICTED, "the rank is higher on the last task"
    assert claim.parts[0].result.median_a == pytest.approx(
        np.median([value(t, "effective_rank", "last") for t in results_of(tmp_path / "runs/made").trials[:8]])
    )


def test_readings_are_tested_without_correction_over_parts_or_readings(tmp_path: Path) -> None:
    def several(trial: Trial, metric: str, data: str) -> float:
        return 10.0 + 0.01 * trial.seed + (1.0 if trial.optimizer == "a" else 0.0)

    # Six seeds reach p = .031, which correcting over two parts or two readings would double.
    claim = judged(made(tmp_path, METRICS[:2], several, seeds=6, rates="[0.1, 0.2]"))
    assert [part.left.variant for part in claim.parts] == ["lr=0.1", "lr=0.2"]
    assert claim.verdict is ClaimVerdict.NO_EVIDENCE
    assert [set(says(part.readings).values()) for part in claim.parts] == [{Says.HIGHER}] * 2


def test_readings_without_enough_values_are_undefined_with_a_reason(tmp_path: Path) -> None:
    def gaps(trial: Trial, metric: str, data: str) -> float | None:
        lost = metric == "stable_rank" and trial.seed < 3
        return None if lost else value(trial, metric, data)

    [part] = judged(made(tmp_path, METRICS, gaps, seeds=8)).parts
    [undefined] = [reading for reading in part.readings if reading.says is Says.UNDEFINED]
    assert undefined.cell.name == "stable_rank"
    assert undefined.result.undefined == 3
    assert undefined.reason.startswith("5 of 8 pairs can be used")
    assert undefined.relative is None
    assert all(not reading.reason for reading in part.readings if reading is not undefined)


def test_a_difference_below_the_margin_has_a_direction(tmp_path: Path) -> None:
    def slightly(trial: Trial, metric: str, data: str) -> float:
        return 20.0 + trial.seed - (0.1 if trial.optimizer == "a" else 0.0)

    claim = judged(made(tmp_path, ("effective_rank", "pca99"), slightly))
    assert claim.verdict is ClaimVerdict.NO_EVIDENCE, "smaller than the margin of .5"
    assert set(says(claim.parts[0].readings).values()) == {Says.LOWER}


def test_different_initial_weights_or_a_diverged_side_make_all_readings_undefined(tmp_path: Path) -> None:
    differing = judged(made(tmp_path, METRICS, value, name="start", start=lambda t: f"{t.optimizer}{t.seed}"))
    assert {(r.says, r.reason) for r in differing.parts[0].readings} == {(Says.UNDEFINED, "initial weights differ")}
    lost = judged(
        made(
            tmp_path,
            METRICS,
            value,
            name="lost",
            status=lambda t: "diverged" if t.optimizer == "a" and t.seed == 0 else "ok",
        )
    )
    assert {r.says for r in lost.parts[0].readings} == {Says.UNDEFINED}
    assert "only one side diverged on 1 of 8 pairs" in lost.parts[0].readings[0].reason


def test_the_relative_effect_is_scale_free_and_never_divides_by_zero(tmp_path: Path) -> None:
    def scaled(trial: Trial, metric: str, data: str) -> float:
        if metric == "srank":
            return 1.0 if trial.optimizer == "a" else 0.0
        factor = 1000.0 if metric == "stable_rank" else -0.001 if metric == "pca99" else 1.0
        return factor * (10 + (2 if trial.optimizer == "a" else 0.0) + 0.1 * trial.seed)

    [part] = judged(made(tmp_path, METRICS, scaled)).parts
    relative = {reading.cell.name: reading.relative for reading in part.readings}
    assert relative["srank"] is None, "the median of the right side is 0"
    one, thousand, negative = (relative[name] for name in ("effective_rank", "stable_rank", "pca99"))
    assert one is not None
    assert thousand == pytest.approx(one)
    assert negative == pytest.approx([-one[0], -one[2], -one[1]]), "the effect has the sign of the difference"
    assert one[0] == pytest.approx(2 / 10.35)
    assert all(map(math.isfinite, one))


def test_readings_can_be_compared_with_a_number(tmp_path: Path) -> None:
    [part] = judged(made(tmp_path, METRICS, value, right="10")).parts
    assert set(says(part.readings).values()) >= {Says.LOWER, Says.HIGHER}
    for reading in part.readings:
        assert reading.relative is not None
        assert reading.relative[0] == pytest.approx(reading.result.difference / 10)  # type: ignore[operator]
