"""Comparisons, claims and gates: pairing, refusals and reports."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from optbench.errors import ComparisonError, UsageError
from optbench.plan import Trial
from optbench.report import comparison_report, run_report
from optbench.report.formats.terminal import show
from optbench.report.records import comparison_rows
from optbench.stats.arms import arms
from optbench.stats.claims import ClaimVerdict, judge_claims, overall
from optbench.stats.comparison import ArmComparison, Comparison, Selection, compare
from optbench.stats.gates import GateResult, judge_gates, parse_gate
from optbench.stats.results import Results
from optbench.stats.verdict import Verdict
from optbench.store.tables import Row, TrialRow
from optbench.store.values import accuracy_matrices, final_metrics
from optbench.suite import load_suite
from tests.reports import comparison_csv, comparison_json, report_json, summarise
from tests.written_runs import results_of, rows_of, write_run

SUITE = """
name: duel
seeds: {seeds}
optimizers:
  sgd: {{target: sgd, lr: {lr}}}
  adam: {{target: adam, lr: 1.0e-3}}
  rates: {{target: adam, lr: [1.0e-4, 1.0e-3, 1.0e-2]}}
experiments:
  permuted:
    tasks: {{kind: permuted, count: 3}}
    models: {{small: {{kind: mlp, hidden: [10]}}, wide: {{kind: mlp, hidden: [20]}}}}
    tuning: {{sgd: {{settings: 7, seeds: 2}}, adam: {{settings: 7, seeds: 2}}}}
{claims}
"""


def matrix(forgets: float) -> list[list[float]]:
    """Return accuracies of .9 that later fall by `forgets`; the average accuracy is .9 - 2/3 `forgets`."""
    return [[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9 - forgets, 0.9 - forgets, 0.9]]


FORGETS = {"sgd": 0.10, "adam": 0.20, "rates": 0.30}
RANK = {"sgd": 30.0, "adam": 20.0, "rates": 20.0}


# Fixed noise that each seed adds to the forgetting of its trial.
_NOISE = [0.0031, -0.0012, 0.0044, -0.0038, 0.0007, 0.0025, -0.0049, 0.0018, -0.0021, 0.0039, 0.0001, -0.0008]
_OTHER = [-0.0023, 0.0041, 0.0009, -0.0017, 0.0036, -0.0044, 0.0012, 0.0028, -0.0006, -0.0031, 0.0019, 0.0047]


def rows(trial: Trial, shift: float = 0.0, status: str = "ok", start: str = "same") -> list[Row]:
    wobble = (_NOISE if trial.optimizer == "sgd" else _OTHER)[trial.seed]
    forgets = FORGETS[trial.optimizer] + shift + wobble
    metrics = {"effective_rank": RANK[trial.optimizer] + 100 * wobble, "hoyer": 0.3 + wobble}
    return rows_of(status, matrix(forgets), metrics, init_hash=f"{start}-{trial.model}-{trial.seed}")


def make(
    folder: Path,
    found: Callable[[Trial], Sequence[Row]] = rows,
    *,
    name: str = "made",
    seeds: object = 10,
    lr: str = "0.1",
    claims: str = "",
    status: str = "complete",
    **record: object,
) -> Results:
    suite = SUITE.format(seeds=seeds, lr=lr, claims=claims)
    return results_of(write_run(folder, suite, found, name=name, status=status, **record))


def against(results: Results, a: str = "sgd", b: str = "adam") -> Comparison:
    return compare(Selection(results, a), Selection(results, b))


def verdict(pair: ArmComparison, metric: str) -> Verdict:
    found = pair.metric(metric)
    assert found is not None
    assert found.judgement is not None
    return found.judgement.verdict


def text_of(comparison: Comparison, gates: Sequence[str] = (), width: int = 200, *, everything: bool = False) -> str:
    judged = judge_gates([parse_gate(gate) for gate in gates], comparison.pairs)
    file = io.StringIO()
    show(comparison_report(comparison, judged, everything=everything), Console(file=file, width=width))
    return " ".join(file.getvalue().split())


# --- Reading


def test_accuracy_matrices_are_built_from_the_long_table() -> None:
    rng = np.random.default_rng(0)
    wanted = {f"t{i}": rng.random((tasks + 1, tasks)) for i, tasks in enumerate([1, 3, 2, 5, 3])}
    wanted["t1"][2, 1] = np.nan
    long = [
        {"trial": t, "after_task": i, "task": j + 1, "accuracy": None if np.isnan(m[i, j]) else m[i, j]}
        for t, m in wanted.items()
        for i, j in np.ndindex(m.shape)
    ]
    order = rng.permutation(len(long))
    table = pa.Table.from_pylist([long[i] for i in order])
    found = accuracy_matrices(table)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[t], wanted[t], equal_nan=True) for t in wanted)
    assert accuracy_matrices(table.slice(0, 0)) == {}


def test_final_metrics_are_of_the_whole_network_after_the_last_task() -> None:
    matrices = {"t": np.zeros((3, 2))}
    line = {"trial": "t", "after_task": 2, "task": None, "layer": None, "metric": "hoyer", "value": 0.5}
    other = [{"after_task": 1}, {"task": 1}, {"layer": "hidden.0.weight"}, {"trial": "unknown"}]
    lines = [{**line, **change, "value": -1.0} for change in other]
    rank = {**line, "layer": "features", "metric": "effective_rank", "value": None}
    found = final_metrics(pa.Table.from_pylist([*lines, line, rank]), matrices)
    assert found["hoyer"] == {"t": 0.5}
    assert math.isnan(found["effective_rank"]["t"])


# --- Pairs and verdicts


def test_two_optimizers_of_one_run_are_paired_on_every_model(tmp_path: Path) -> None:
    comparison = against(make(tmp_path))
    assert [(p.a.model, p.a.label, p.b.label) for p in comparison.pairs] == [
        ("small", "sgd", "adam"),
        ("wide", "sgd", "adam"),
    ]
    pair = comparison.pairs[0]
    assert (pair.seeds, pair.same_start, pair.planned) == (tuple(range(10)), True, 10)
    forgetting = pair.metric("forgetting")
    assert forgetting is not None
    differences = np.array(_NOISE[:10]) - np.array(_OTHER[:10]) - 0.1
    assert np.allclose(sorted(forgetting.result.differences), sorted(differences))
    assert forgetting.result.p == pytest.approx(2 / 1024)
    assert verdict(pair, "forgetting") == Verdict.BETTER
    assert verdict(pair, "average_accuracy") == Verdict.BETTER
    assert verdict(pair, "effective_rank") == Verdict.HIGHER


def test_swapping_the_sides_reverses_the_verdicts(tmp_path: Path) -> None:
    pair = against(make(tmp_path), "adam", "sgd").pairs[0]
    assert verdict(pair, "forgetting") == Verdict.WORSE
    assert verdict(pair, "effective_rank") == Verdict.LOWER


def test_metrics_outside_the_primary_family_get_no_verdict(tmp_path: Path) -> None:
    comparison = against(make(tmp_path))
    judged = {m.metric.name for m in comparison.pairs[0].metrics if m.judgement is not None}
    assert judged == {"average_accuracy", "forgetting", "effective_rank"}
    shown = text_of(comparison, everything=True)
    assert "hoyer exploratory" in shown
    assert "smallest p after Holm's correction over 3 primary metrics: 0.0059" in shown


def test_a_suite_can_declare_primary_metrics(tmp_path: Path) -> None:
    suite = SUITE.format(seeds=10, lr=0.1, claims="").replace("    tuning:", "    primary: [hoyer]\n    tuning:")
    results = results_of(write_run(tmp_path, suite, rows))
    judged = [m.metric.name for m in against(results).pairs[0].metrics if m.judgement is not None]
    assert judged == ["hoyer"]


def test_two_runs_are_paired_by_optimizer_and_variant(tmp_path: Path) -> None:
    old = make(tmp_path, name="old")
    new = make(tmp_path, lambda trial: rows(trial, -0.05 if trial.optimizer == "adam" else 0.0), name="new")
    comparison = compare(Selection(new), Selection(old))
    labels = [pair.a.label for pair in comparison.pairs if pair.a.model == "small"]
    assert labels == ["sgd", "adam", "rates lr=0.0001", "rates lr=0.001", "rates lr=0.01"]
    assert all(pair.a.label == pair.b.label for pair in comparison.pairs)
    by_label = {pair.a.label: pair for pair in comparison.pairs if pair.a.model == "small"}
    assert verdict(by_label["adam"], "forgetting") == Verdict.BETTER
    assert verdict(by_label["sgd"], "forgetting") == Verdict.EQUIVALENT
    only = compare(Selection(new, "adam"), Selection(old, "adam"))
    assert {pair.a.label for pair in only.pairs} == {"adam"}


def test_one_optimizer_is_compared_with_each_variant_of_a_sweep(tmp_path: Path) -> None:
    results = make(tmp_path)
    comparison = against(results, "sgd", "rates")
    assert [pair.b.variant for pair in comparison.pairs if pair.b.model == "small"] == [
        "lr=0.0001",
        "lr=0.001",
        "lr=0.01",
    ]
    one = compare(Selection(results, "rates", "lr=0.01"), Selection(results, "rates", "lr=0.001"))
    assert [(pair.a.variant, pair.b.variant) for pair in one.pairs] == [("lr=0.01", "lr=0.001")] * 2


def test_five_seeds_are_never_enough_and_the_report_explains_why(tmp_path: Path) -> None:
    comparison = against(make(tmp_path, seeds=5))
    assert verdict(comparison.pairs[0], "forgetting") == Verdict.NOT_COMPARABLE
    shown = text_of(comparison)
    assert "smallest two-sided p for 5 pairs: 0.062" in shown
    assert "better" not in shown.split("Verdicts describe")[0]


def test_a_single_seed_gives_numbers_and_no_verdict(tmp_path: Path) -> None:
    comparison = against(make(tmp_path, seeds=1))
    assert verdict(comparison.pairs[0], "forgetting") == Verdict.NOT_COMPARABLE
    found = comparison.pairs[0].metric("forgetting")
    assert found is not None
    assert found.result.difference == pytest.approx(_NOISE[0] - _OTHER[0] - 0.1)
    assert "1 of 1 seed paired" in text_of(comparison)


def test_a_diverged_seed_counts_as_the_worst_and_is_reported(tmp_path: Path) -> None:
    def lost(trial: Trial) -> list[Row]:
        return rows(trial, status="diverged" if trial.optimizer == "adam" and trial.seed < 2 else "ok")

    pair = (comparison := against(make(tmp_path, lost))).pairs[0]
    found = pair.metric("forgetting")
    assert found is not None
    assert (found.result.n, found.result.diverged_b) == (10, 2)
    assert sum(math.isinf(d) for d in found.result.differences) == 2
    assert verdict(pair, "forgetting") == Verdict.BETTER
    assert verdict(pair, "effective_rank") == Verdict.NOT_COMPARABLE, "a neutral metric has no worst rank"
    shown = text_of(comparison)
    assert "B (adam), of 10 trials: 2 diverged" in shown
    assert "only one side diverged on 2 of 10 pairs" in shown


def test_failed_and_unfinished_trials_reduce_the_pairs_and_are_reported(tmp_path: Path) -> None:
    def broken(trial: Trial) -> list[Row]:
        if trial.optimizer == "adam" and trial.seed == 3:
            return rows_of("failed")
        return [] if trial.optimizer == "sgd" and trial.seed == 7 else rows(trial)

    comparison = against(make(tmp_path, broken, status="interrupted"))
    assert comparison.pairs[0].seeds == (0, 1, 2, 4, 5, 6, 8, 9)
    shown = text_of(comparison)
    assert "8 of 10 seeds paired" in shown
    assert "A (sgd), of 10 trials: 1 not finished" in shown
    assert "B (adam), of 10 trials: 1 failed" in shown
    assert "made is not complete: interrupted" in shown


def test_different_initial_weights_are_not_comparable(tmp_path: Path) -> None:
    results = make(tmp_path, lambda trial: rows(trial, start=trial.optimizer))
    comparison = against(results)
    assert comparison.pairs[0].same_start is False
    assert {verdict(comparison.pairs[0], m) for m in ("forgetting", "effective_rank")} == {Verdict.NOT_COMPARABLE}
    assert "initial weights differ" in text_of(comparison)


def test_tuning_budgets_are_reported(tmp_path: Path) -> None:
    results = make(tmp_path)
    assert "tuning budgets: equal, 7 settings × 2 seeds" in text_of(against(results))
    assert "tuning budgets: not stated for rates lr=0.0001" in text_of(against(results, "sgd", "rates"))


# --- Refused comparisons


def test_different_settings_are_refused_with_the_difference_and_can_be_forced(tmp_path: Path) -> None:
    a, b = make(tmp_path, name="a"), make(tmp_path, name="b", lr="0.2")
    with pytest.raises(ComparisonError, match=r"their suites differ in optimizers\.sgd\.lr \(0\.1, 0\.2\)") as error:
        compare(Selection(a), Selection(b))
    assert error.value.exit_code == 4
    forced = compare(Selection(a), Selection(b), force=True)
    assert forced.remarks[0].startswith("forced: their suites differ in optimizers.sgd.lr")
    assert forced.remarks[0] in text_of(forced)


def test_different_seeds_are_refused_and_can_be_forced_on_common_seeds(tmp_path: Path) -> None:
    a, b = make(tmp_path, name="a"), make(tmp_path, name="b", seeds=[4, 5, 6, 7, 8, 9, 10, 11])
    with pytest.raises(ComparisonError, match="their suites differ in seeds"):
        compare(Selection(a), Selection(b))
    forced = compare(Selection(a), Selection(b), force=True)
    assert forced.pairs[0].seeds == (4, 5, 6, 7, 8, 9)


def test_different_versions_of_metrics_are_refused(tmp_path: Path) -> None:
    a, b = make(tmp_path, name="a"), make(tmp_path, name="b", metrics_version=99)
    with pytest.raises(ComparisonError, match="they use different versions of the metrics, 1 and 99"):
        compare(Selection(a), Selection(b))


def test_suites_that_differ_only_in_claims_can_be_compared(tmp_path: Path) -> None:
    a, b = make(tmp_path, name="a"), make(tmp_path, name="b", claims=CLAIMS)
    assert compare(Selection(a), Selection(b)).remarks == ()


def test_a_different_device_or_torch_gives_a_remark(tmp_path: Path) -> None:
    provenance = {"device": "cuda", "torch": "2.11.0"}
    a, b = make(tmp_path, name="a"), make(tmp_path, name="b", provenance=provenance)
    remarks = compare(Selection(a), Selection(b)).remarks
    assert remarks == ("different devices: cpu in A, cuda in B", "different torch versions: 2.13.0 in A, 2.11.0 in B")


def test_a_run_against_itself_and_unknown_names_are_refused(tmp_path: Path) -> None:
    results = make(tmp_path)
    with pytest.raises(ComparisonError, match="expected two different sides"):
        compare(Selection(results), Selection(results))
    with pytest.raises(UsageError, match="unknown optimizer 'addam'; did you mean 'adam'"):
        against(results, "sgd", "addam")
    with pytest.raises(UsageError, match=r"unknown variant 'lr=0\.02'"):
        compare(Selection(results, "rates", "lr=0.02"), Selection(results, "sgd"))
    with pytest.raises(UsageError, match="unknown experiment 'permutd'; did you mean 'permuted'"):
        compare(Selection(results, "sgd"), Selection(results, "adam"), experiments=["permutd"])


def test_an_experiment_that_only_one_side_has_is_refused(tmp_path: Path) -> None:
    a = make(tmp_path, name="a")
    b = results_of(
        write_run(tmp_path, SUITE.format(seeds=10, lr="0.1", claims="").replace("permuted:", "other:"), rows)
    )
    for left, right in ((a, b), (b, a)):
        with pytest.raises(UsageError, match=f"--experiment: {b.run.id}: unknown experiment 'permuted'"):
            compare(Selection(left), Selection(right), experiments=["permuted"], force=True)


def test_two_sweeps_with_different_variants_are_refused(tmp_path: Path) -> None:
    suite = SUITE.format(seeds=10, lr="[0.1, 0.2]", claims="")
    results = results_of(write_run(tmp_path, suite, rows))
    with pytest.raises(ComparisonError, match=r"name one, as in RUN:sgd/lr=0\.1"):
        against(results, "sgd", "rates")


# --- Claims

CLAIMS = """
claims:
  right: {experiment: permuted, metric: forgetting, left: sgd, right: adam, expect: lower, source: "Figure 0"}
  wrong: {experiment: permuted, metric: forgetting, left: sgd, right: adam, expect: higher}
  one-model: {experiment: permuted, models: [wide], metric: effective_rank, left: sgd, right: adam, expect: higher}
  large: {experiment: permuted, metric: forgetting, left: sgd, right: adam, expect: lower, margin: 0.2}
  same: {experiment: permuted, metric: forgetting, left: sgd, right: 0.1, expect: higher, margin: 0.01}
  number: {experiment: permuted, metric: forgetting, left: adam, right: 0.1, expect: higher, beside: [hoyer]}
  sweep: {experiment: permuted, metric: forgetting, left: sgd, right: rates, expect: lower}
"""


def judged(results: Results) -> dict[str, ClaimVerdict]:
    return {claim.name: claim.verdict for claim in judge_claims(results)}


def test_claims_are_judged_by_the_data(tmp_path: Path) -> None:
    results = make(tmp_path, claims=CLAIMS)
    assert judged(results) == {
        "right": ClaimVerdict.SUPPORTED,
        "wrong": ClaimVerdict.CONTRADICTED,
        "one-model": ClaimVerdict.SUPPORTED,
        "large": ClaimVerdict.NO_EVIDENCE,
        "same": ClaimVerdict.CONTRADICTED,
        "number": ClaimVerdict.SUPPORTED,
        "sweep": ClaimVerdict.SUPPORTED,
    }
    by_name = {claim.name: claim for claim in judge_claims(results)}
    assert [part.model for part in by_name["right"].parts] == ["small", "wide"]
    assert [part.model for part in by_name["one-model"].parts] == ["wide"]
    assert "below the margin" in by_name["large"].parts[0].reason
    assert "equivalent" in by_name["same"].parts[0].reason
    assert len(by_name["sweep"].parts) == 6
    assert by_name["sweep"].parts[0].judgement.holm_p == pytest.approx(6 * 2 / 1024), "Holm over the parts"
    left, right = by_name["number"].parts[0].beside["hoyer"]
    assert left == pytest.approx(0.3 + float(np.median(_OTHER[:10])))
    assert right is None


def test_claims_on_too_few_seeds_or_different_starts_are_not_comparable(tmp_path: Path) -> None:
    few = judged(make(tmp_path, name="few", seeds=5, claims=CLAIMS))
    assert set(few.values()) == {ClaimVerdict.NOT_COMPARABLE}
    other = judged(make(tmp_path, lambda trial: rows(trial, start=trial.optimizer), name="other", claims=CLAIMS))
    assert other["right"] == ClaimVerdict.NOT_COMPARABLE
    assert other["number"] == ClaimVerdict.SUPPORTED, "a comparison with a number needs no initial weights"


def test_a_contradicting_part_decides_and_one_without_evidence_removes_support() -> None:
    yes, no, none, never = ClaimVerdict
    assert overall([yes, yes]) == yes
    assert overall([yes, no, none]) == no
    assert overall([yes, none]) == none
    assert overall([yes, never]) == none
    assert overall([never, never]) == never
    assert overall([]) == never


def test_claims_are_reported_with_verdict_effect_and_source(tmp_path: Path) -> None:
    summary = summarise([make(tmp_path, claims=CLAIMS)])
    file = io.StringIO()
    show(run_report(summary), Console(file=file, width=200))
    shown = " ".join(file.getvalue().split())
    assert "4 supported, 2 contradicted, 1 no evidence, 0 not comparable" in shown
    assert "1 forgetting of sgd lower than that of adam, by 0.005 or more (Figure 0) supported (2 of 2)" in shown
    assert "claim 2, small; claim 2, wide: contradicted: the difference has the opposite sign" in shown
    rows = {
        number: found for number in range(1, 8) for found in re.findall(rf"\b{number} small [^†]*?([≤≥<>] \S+)", shown)
    }
    margins = {1: "≤ -0.005", 2: "≥ 0.005", 4: "≤ -0.2", 5: "≥ 0.01"}
    assert {number: rows[number] for number in margins} == margins, "a smaller difference does not support the claim"
    told = json.loads(report_json(summary))["claims"]
    assert [claim["verdict"] for claim in told][:2] == ["supported", "contradicted"]
    assert told[0]["parts"][0]["low"] < told[0]["parts"][0]["difference"] < told[0]["parts"][0]["high"] < 0


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("{experiment: permute, metric: forgetting, left: sgd, right: adam, expect: lower}", "did you mean 'permuted'"),
        ("{experiment: permuted, metric: forgetting, left: sdg, right: adam, expect: lower}", "did you mean 'sgd'"),
        ("{experiment: permuted, metric: forgetting, left: sgd, right: adm, expect: lower}", "did you mean 'adam'"),
        ("{experiment: permuted, metric: forgetting, left: sgd, right: [1], expect: lower}", "or a number"),
        ("{experiment: permuted, metric: forgetting, left: sgd, right: adam, expect: below}", "valid: equivalent, hig"),
        (
            "{experiment: permuted, models: [smal], metric: forgetting, left: sgd, right: adam, expect: lower}",
            "did you mean 'small'",
        ),
    ],
)
def test_a_claim_about_unknown_names_is_refused_with_its_place(tmp_path: Path, claim: str, said: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.format(seeds=2, lr=0.1, claims=f"claims:\n  c: {claim}"), encoding="utf-8")
    with pytest.raises(Exception, match=said) as error:
        load_suite(path)
    assert str(error.value).startswith(f"{path}:14:")


# --- Gates


def gate(results: Results, text: str, a: str = "sgd", b: str = "adam") -> GateResult:
    return judge_gates([parse_gate(text)], against(results, a, b).pairs)[0].result


def test_a_gate_fails_only_if_the_whole_interval_exceeds_the_threshold(tmp_path: Path) -> None:
    results = make(tmp_path)
    found = against(results, "adam", "sgd").pairs[0].metric("forgetting")
    assert found is not None
    assert found.result.interval is not None
    low, high = found.result.interval
    assert 0.09 < low < 0.1 < high < 0.11
    for threshold, expected in [
        (low - 1e-6, GateResult.FAILED),
        (low + 1e-6, GateResult.INCONCLUSIVE),
        (high - 1e-6, GateResult.INCONCLUSIVE),
        (high + 1e-6, GateResult.PASSED),
    ]:
        assert gate(results, f"forgetting:+{threshold:.9f}", "adam", "sgd") == expected
        # With swapped sides the mirrored gate gives the same result.
        assert gate(results, f"forgetting:-{threshold:.9f}", "sgd", "adam") == expected
    assert gate(results, "forgetting:+0.02") == GateResult.PASSED, "it forgets less"


def test_a_percentage_is_relative_to_the_median_of_the_other_side(tmp_path: Path) -> None:
    results = make(tmp_path)
    # Average accuracy is .833 for sgd and .767 for adam, which is 8% lower.
    assert gate(results, "average_accuracy:-5%", "adam", "sgd") == GateResult.FAILED
    assert gate(results, "average_accuracy:-10%", "adam", "sgd") == GateResult.PASSED


def test_a_gate_without_enough_pairs_or_with_failed_trials_is_inconclusive(tmp_path: Path) -> None:
    few = make(tmp_path, name="few", seeds=5)
    assert gate(few, "forgetting:+0.02") == GateResult.INCONCLUSIVE
    assert gate(make(tmp_path, name="all"), "srank:+1") == GateResult.INCONCLUSIVE, "not measured"

    def broken(trial: Trial) -> list[Row]:
        return rows_of("failed") if trial.optimizer == "sgd" and trial.seed == 0 else rows(trial)

    results = make(tmp_path, broken, name="broken")
    assert gate(results, "forgetting:+0.02") == GateResult.INCONCLUSIVE
    assert gate(results, "forgetting:-0.02") == GateResult.FAILED, "a clear result does not change"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_gate_is_not_passed_if_only_some_seeds_reached_the_target_loss(tmp_path: Path, optimizer: str) -> None:
    def above(trial: Trial) -> list[Row]:
        first, *others = rows(trial)
        assert isinstance(first, TrialRow)
        missed = trial.optimizer == optimizer and trial.seed == 0
        return [dataclasses.replace(first, tasks_above_target=int(missed)), *others]

    results = make(tmp_path, above)
    assert gate(results, "forgetting:+0.02") == GateResult.INCONCLUSIVE
    told = comparison_rows(against(results), ["forgetting"])
    found = {(row["above_target_a"], row["above_target_b"]) for row in told}
    assert found == {(1, 0) if optimizer == "sgd" else (0, 1)}


def test_a_side_that_diverged_everywhere_fails_its_gate(tmp_path: Path) -> None:
    results = make(tmp_path, lambda trial: rows(trial, status="diverged" if trial.optimizer == "adam" else "ok"))
    assert gate(results, "forgetting:+0.02", "adam", "sgd") == GateResult.FAILED
    assert gate(results, "average_accuracy:-1%", "adam", "sgd") == GateResult.FAILED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("forgetting", "expected METRIC:"),
        ("forgetting:0.02", "expected METRIC:"),
        ("forgetting:+", "expected METRIC:"),
        ("forgetting:+nan", "expected METRIC:"),
        (":+1", "expected METRIC:"),
    ],
)
def test_an_invalid_gate_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_gate(text)


def test_gates_are_parsed() -> None:
    parsed = [parse_gate(text) for text in ("forgetting:+0.02", "average_accuracy:-1%", "hoyer:-.5", "hoyer:+2e-3")]
    assert [(g.metric, g.upwards, g.threshold, g.relative) for g in parsed] == [
        ("forgetting", True, 0.02, False),
        ("average_accuracy", False, -0.01, True),
        ("hoyer", False, -0.5, False),
        ("hoyer", True, 0.002, False),
    ]


# --- Records


def test_json_and_csv_agree_with_the_comparison(tmp_path: Path) -> None:
    comparison = against(make(tmp_path))
    gates = judge_gates([parse_gate("forgetting:+0.02")], comparison.pairs)
    told = json.loads(comparison_json(comparison, gates))
    assert (told["format"], told["version"]) == ("optbench-comparison", 1)
    lines = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    expected = [(pair, found) for pair in comparison.pairs for found in pair.metrics]
    assert len(told["results"]) == len(lines) == len(expected)
    for (pair, found), record, line in zip(expected, told["results"], lines, strict=True):
        assert (record["model"], record["metric"]) == (pair.a.model, found.metric.name)
        assert record["difference"] == found.result.difference
        assert line["difference"] == ("" if found.result.difference is None else str(found.result.difference))
        assert record["primary"] == (found.judgement is not None)
    assert [g["result"] for g in told["gates"]] == ["passed", "passed"]


def test_infinite_differences_are_valid_json(tmp_path: Path) -> None:
    results = make(tmp_path, lambda trial: rows(trial, status="diverged" if trial.optimizer == "adam" else "ok"))
    told = json.loads(comparison_json(against(results), []), parse_constant=lambda name: pytest.fail(name))
    differences = {r["metric"]: r["difference"] for r in told["results"] if r["model"] == "small"}
    assert differences["forgetting"] == "-inf"
    assert differences["average_accuracy"] == "inf"
    assert differences["effective_rank"] is None


def test_arms_count_their_trials(tmp_path: Path) -> None:
    found = arms(make(tmp_path))
    assert len(found) == 2 * 5
    assert [arm.label for arm in found][:3] == ["sgd", "adam", "rates lr=0.0001"]
    assert found[0].count("ok") == 10
    assert found[0].took("hoyer")
    assert not found[0].took("gini")
    assert found[0].status(99) == "missing"
