"""Switched optimizers: ρ agrees with hand-computed values and SciPy, and is undefined if seeds cannot show it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from optbench.plan import Trial
from optbench.report import run_report
from optbench.report.document import Table
from optbench.report.figures import to_svg
from optbench.report.figures.style import SEEDS, look
from optbench.report.formats import render_text
from optbench.report.formats.terminal import show
from optbench.report.spread import spread_text
from optbench.stats.bootstrap import RESAMPLES, percentile_interval, resampled_means
from optbench.stats.results import Results
from optbench.store.pairs_table import NAME as PAIRS
from optbench.store.pairs_table import PairRow, pairs_table
from optbench.store.tables import Row
from optbench.studies.switching.statistics import Estimate, Switching, difference, rho, switchings
from optbench.studies.switching.tables import TITLE, switching_blocks
from tests.reports import figures, on_axes, report_csv, report_json, summarise
from tests.written_runs import results_of, rows_of, write_run

SGD, ADAM = "{target: sgd, lr: 0.1}", "{target: adam, lr: 0.001}"
SUITE = f"""
name: basins
seeds: 6
optimizers:
  sgd: {SGD}
  adam: {ADAM}
  to-adam: {{target: switch, first: {SGD}, then: {ADAM}, at: [100, 0, 4], state: reset}}
  control: {{target: switch, first: {SGD}, then: {SGD}, at: [2, 4], state: reset}}
  noisy: {{target: gradient-noise, steps: [2, 8], base: {ADAM}}}
  noise: {{target: gradient-noise, base: {ADAM}}}
experiments:
  early:
    tasks: {{kind: permuted, count: 2}}
    models: {{net: {{kind: mlp, hidden: [10]}}}}
"""
WOBBLE = (0.0, 0.01, -0.01, 0.02, -0.02, 0.03)
RANKS = {"sgd": 30.0, "adam": 20.0}
Outcome = Callable[[Trial], tuple[float, float, str]]
"""A function of a trial that gives final accuracy, effective rank and status."""


def k_of(trial: Trial) -> int | None:
    given: int | None = trial.hyperparameters.get("at", trial.hyperparameters.get("steps"))
    return given


def usual(trial: Trial) -> tuple[float, float, str]:
    """Return values in which sgd is .2 (accuracy) and 10 (rank) above adam; 4 steps of sgd give a quarter of this."""
    k, wobble = k_of(trial), WOBBLE[trial.seed % len(WOBBLE)]
    share = {"sgd": 1.0, "adam": 0.0, "control": 1.0, "noisy": 0.0, "noise": 0.0}.get(trial.optimizer)
    if share is None:
        share = {0: 0.0, 4: 0.25, 100: 1.0}[k or 0]
    extra = {("control", 4): 0.004, ("noisy", 8): -0.01}.get((trial.optimizer, k or 0), 0.0)
    return 0.6 + 0.2 * share + wobble + extra, 20 + 10 * share + 10 * wobble, "ok"


def made(folder: Path, outcome: Outcome = usual, suite: str = SUITE, name: str = "made") -> Results:
    def rows(trial: Trial) -> Sequence[Row]:
        accuracy, rank, status = outcome(trial)
        if status == "missing":
            return []
        return rows_of(status, [[0.1, 0.1], [0.95, 0.1], [accuracy, accuracy]], {"effective_rank": rank})

    return results_of(write_run(folder, suite, rows, name=name))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return made(tmp_path_factory.mktemp("switches"))


def by_optimizer(results: Results) -> dict[str, Switching]:
    return {found.optimizer: found for found in switchings(results)}


def estimates(found: Switching, metric: str) -> dict[float, Estimate]:
    return {point.k: found.estimate(point, metric) for point in found.points}


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


# ρ itself


def test_rho_equals_a_hand_computed_ratio_of_means() -> None:
    first, then = array(10, 11, 12, 13, 14), array(0, 1, 5, 3, 1)  # means 12 and 2; paired differences 10 10 7 10 13
    switched = array(5, 5, 6, 4, 5)  # mean 5
    found = rho(switched, first, then)
    assert found.value == pytest.approx((5 - 2) / (12 - 2))
    mean_of_ratios = np.mean((switched - then) / (first - then))
    assert found.value != pytest.approx(mean_of_ratios, abs=0.005)
    assert found.n == 5
    assert found.interval is not None
    assert found.interval[0] < 0.3 < found.interval[1]


@pytest.mark.parametrize("n", [5, 8, 20])
def test_the_interval_equals_scipys_paired_percentile_bootstrap(n: int) -> None:
    random = np.random.default_rng(n)
    start = random.normal(size=n)  # the effect of a seed that all three share
    first, then = start + random.normal(5, 0.5, n), start + random.normal(0, 0.5, n)
    switched = start + random.normal(2, 0.5, n)

    def ratio(ab: np.ndarray, a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return (ab.mean(axis) - b.mean(axis)) / (a.mean(axis) - b.mean(axis))

    expected = scipy.stats.bootstrap(
        (switched, first, then),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = rho(switched, first, then)
    assert found.interval is not None
    assert found.interval == pytest.approx(tuple(expected), abs=0.1 * (expected[1] - expected[0]))
    # Resampling the seeds of the three separately would give a wider interval.
    assert found.interval[1] - found.interval[0] < 0.9 * _unpaired_width(ratio, switched, first, then)


def _unpaired_width(ratio: Callable[..., np.ndarray], *samples: np.ndarray) -> float:
    random, n = np.random.default_rng(2), len(samples[0])
    drawn = [sample[random.integers(n, size=(RESAMPLES, n))] for sample in samples]
    low, high = np.quantile(ratio(*drawn), [0.025, 0.975])
    return float(high - low)


def test_all_statistics_share_one_resampling_of_seeds() -> None:
    x = np.random.default_rng(0).normal(size=7)
    one, other = resampled_means(np.stack([x, 3 - 2 * x]))
    assert np.allclose(other, 3 - 2 * one)
    assert len(np.unique(one)) > RESAMPLES / 4
    assert np.array_equal(one, resampled_means(x))


def test_the_percentile_interval_covers_the_middle_of_the_resamples() -> None:
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))
    assert percentile_interval(np.arange(1001.0), 0.5) == pytest.approx((250.0, 750.0))


seeds = st.lists(st.tuples(*[st.floats(-0.1, 0.1)] * 3), min_size=5, max_size=9)


@given(seeds, st.floats(0.1, 10).flatmap(lambda s: st.sampled_from([s, -s])), st.floats(-3, 3), st.randoms())
def test_rho_is_invariant_to_units_and_seed_order_and_mirrored_by_swapping_ends(
    noise: list[tuple[float, ...]], scale: float, shift: float, random: object
) -> None:
    switched, first, then = np.array(noise).T + np.array([[0.4], [1.0], [0.0]])
    found = rho(switched, first, then)
    assert found.value is not None
    assert found.interval is not None
    moved = rho(scale * switched + shift, scale * first + shift, scale * then + shift)
    assert moved.value == pytest.approx(found.value, abs=1e-6)
    assert moved.interval == pytest.approx(found.interval, abs=1e-6)
    order = np.random.default_rng(len(noise)).permutation(len(noise))
    assert rho(switched[order], first[order], then[order]).value == pytest.approx(found.value)
    back = rho(switched, then, first)
    assert back.value == pytest.approx(1 - found.value)
    assert back.interval == pytest.approx((1 - found.interval[1], 1 - found.interval[0]))
    assert rho(first, first, then).interval == pytest.approx((1, 1))
    assert rho(then, first, then).interval == pytest.approx((0, 0))


ONES = [1.0] * 20
MIXED = [1, -1.1, 2, -2.1, 3, -3.1, 2.5]


@pytest.mark.parametrize(
    ("differences", "reason"),
    [
        ([0.0] * 8, "A and B do not differ (signed-rank p = 1, 8 seeds)"),
        ([1e-17] * 8, "A and B do not differ (signed-rank p = 1, 8 seeds)"),  # floating-point noise
        (MIXED, f"A and B do not differ (signed-rank p = {scipy.stats.wilcoxon(MIXED).pvalue:.2g}, 7 seeds)"),
        ([1, 1, 1, 1, -0.01], "A and B do not differ: the 5 seeds disagree in sign"),
        ([1, 1, 1, 1, 0], "A and B do not differ: the 5 seeds disagree in sign"),
        ([1, 1, 1, 1], "4 seeds cannot show whether A and B differ; 5 can"),
        ([1], "1 seed cannot show whether A and B differ; 5 can"),
        # 14 of 15 seeds agree, which is significant, but the outlier changes the sign of the mean.
        ([*ONES[:14], -12], "A and B hardly differ: their difference changes sign in some resamples"),
        ([*ONES[:14], -14], "A and B hardly differ: their difference changes sign in some resamples"),
        ([1, 1, 1, 1, 1], ""),
        ([-1, -2, -3, -1, -2], ""),
        ([1, 1, 1, 1, 1, 1], ""),
    ],
)
def test_rho_is_undefined_if_a_and_b_do_not_differ(differences: list[float], reason: str) -> None:
    d = array(*differences)
    then = np.linspace(0.3, 0.5, len(d)) if abs(d).max() > 1e-10 else np.zeros(len(d))
    found = rho(then + 0.5 * d, then + d, then)
    assert found.reason == reason
    assert found.n == len(d)
    assert (found.value, found.interval) == (None, None) if reason else found.value == pytest.approx(0.5)


def test_a_difference_has_an_interval_unless_there_is_one_seed() -> None:
    found = difference(array(2, 3, 7), array(1, 1, 1))
    assert found.value == pytest.approx(3)
    resampled = scipy.stats.bootstrap((array(1, 2, 6),), np.mean, method="percentile", rng=np.random.default_rng(3))
    assert found.interval == pytest.approx(tuple(resampled.confidence_interval), abs=0.1)
    assert difference(array(2), array(1)) == Estimate(1.0, None, 1)


# Switches found in a run


def test_switches_controls_and_noise_are_distinguished_and_matched_with_pure_arms(results: Results) -> None:
    found = by_optimizer(results)
    assert set(found) == {"to-adam", "control", "noisy"}  # noise in all steps has no k
    switch, control, noise = found["to-adam"], found["control"], found["noisy"]
    assert (switch.kind, switch.first, switch.then, switch.state) == ("switch", "sgd", "adam", "reset")
    assert (control.kind, control.first, control.then) == ("control", "sgd", "sgd")
    assert (noise.kind, noise.then, noise.state) == ("noise", "adam", None)
    labels = [[arm and arm.label for arm in (one.pure_first, one.pure_then)] for one in (switch, control, noise)]
    assert labels == [["sgd", "adam"], ["sgd", "sgd"], [None, "adam"]]
    assert [(point.k, point.whole) for point in switch.points] == [(0, False), (4, False), (100, True)]
    assert [point.k for point in noise.points] == [2, 8]
    assert switch.metrics == ("average_accuracy", "forgetting", "effective_rank")


@pytest.mark.parametrize("metric", ["average_accuracy", "forgetting", "effective_rank"])
def test_rho_of_a_run_recovers_the_planted_fractions(results: Results, metric: str) -> None:
    found = estimates(by_optimizer(results)["to-adam"], metric)
    assert {k: one.value for k, one in found.items()} == {k: pytest.approx(v, abs=1e-9) for k, v in WAY.items()}
    # All seeds have the same fraction, so resampling cannot change it.
    assert found[4].interval == pytest.approx((0.25, 0.25))
    assert found[4].n == 6


WAY = {0: 0.0, 4: 0.25, 100: 1.0}


def test_controls_and_noise_are_compared_with_the_pure_arm(results: Results) -> None:
    found = by_optimizer(results)
    control, noise = (estimates(found[name], "average_accuracy") for name in ("control", "noisy"))
    assert {k: one.value for k, one in control.items()} == {2: pytest.approx(0), 4: pytest.approx(0.004)}
    assert {k: one.value for k, one in noise.items()} == {2: pytest.approx(0), 8: pytest.approx(-0.01)}
    assert noise[8].interval == pytest.approx((-0.01, -0.01))


def test_omitted_defaults_equal_explicit_ones(tmp_path: Path) -> None:
    text = SUITE.replace("adam: {target: adam, lr: 0.001}", "adam: {target: adam}", 1)
    assert text != SUITE
    pure = by_optimizer(made(tmp_path, suite=text))["to-adam"].pure_then
    assert pure is not None
    assert pure.optimizer == "adam"


def test_ends_of_the_sweep_replace_missing_pure_arms(tmp_path: Path) -> None:
    text = SUITE.replace(f"  sgd: {SGD}\n", "").replace(f"  adam: {ADAM}\n", "")
    found = by_optimizer(made(tmp_path, suite=text))
    switch = found["to-adam"]
    assert (switch.first, switch.then) == ("sgd lr=0.1", "adam")  # lr=0.001 is adam's default
    assert switch.pure_first is switch.points[-1].arm
    assert switch.pure_then is switch.points[0].arm
    assert {k: one.value for k, one in estimates(switch, "effective_rank").items()} == pytest.approx(WAY)
    reasons = {one.reason for one in estimates(found["control"], "effective_rank").values()}
    assert reasons == {"no arm uses sgd lr=0.1 alone"}
    assert {one.reason for one in estimates(found["noisy"], "forgetting").values()} == {"no arm uses adam alone"}


def test_an_end_that_was_never_trained_is_reported_as_missing(tmp_path: Path) -> None:
    text = SUITE.replace(f"  sgd: {SGD}\n", "").replace("at: [100, 0, 4]", "at: [0, 4]")
    result = made(tmp_path, suite=text)
    assert by_optimizer(result)["to-adam"].pure_first is None
    shown = " ".join(terminal(result).split())
    said = "no ρ for average accuracy, forgetting, effective rank: no arm uses sgd lr=0.1 alone"
    assert said in shown


def test_settings_other_than_the_step_make_separate_switches(tmp_path: Path) -> None:
    swept = "{target: sgd, lr: [0.1, 0.2]}"
    text = SUITE.replace(f"switch, first: {SGD}, then: {ADAM}", f"switch, first: {swept}, then: {ADAM}")
    found = [one for one in switchings(made(tmp_path, suite=text)) if one.optimizer == "to-adam"]
    assert [(one.label, one.first) for one in found] == [
        ("to-adam first.lr=0.1", "sgd"),
        ("to-adam first.lr=0.2", "sgd lr=0.2"),
    ]
    assert [point.k for point in found[1].points] == [0, 4, 100]


# Few seeds, or seeds without a result


def without(seeds: Mapping[str, Sequence[int]], status: str) -> Outcome:
    def outcome(trial: Trial) -> tuple[float, float, str]:
        accuracy, rank, _ = usual(trial)
        gone = trial.seed in seeds.get(f"{trial.optimizer} {k_of(trial)}", ())
        return accuracy, rank, status if gone else "ok"

    return outcome


@pytest.mark.parametrize("status", ["diverged", "failed", "missing"])
def test_only_seeds_shared_by_all_three_count_and_missing_ones_are_shown(tmp_path: Path, status: str) -> None:
    result = made(tmp_path, without({"to-adam 4": [5], "sgd None": [1]}, status))
    found = estimates(by_optimizer(result)["to-adam"], "average_accuracy")
    assert {k: one.n for k, one in found.items()} == {0: 5, 4: 4, 100: 5}
    assert found[0].value == pytest.approx(0, abs=1e-9)
    assert found[4].reason == "4 seeds cannot show whether sgd and adam differ; 5 can"
    text = terminal(result)
    assert re.search(r"4 +4 of 6 +–", text)
    assert "no ρ for average accuracy, forgetting, effective rank at k = 4: 4 seeds cannot show" in " ".join(
        text.split()
    )


def test_five_agreeing_seeds_give_a_rho_and_one_seed_does_not(tmp_path: Path) -> None:
    five = made(tmp_path, suite=SUITE.replace("seeds: 6", "seeds: 5"), name="five")
    found = estimates(by_optimizer(five)["to-adam"], "forgetting")[4]
    assert (found.value, found.n) == (pytest.approx(0.25), 5)
    one = made(tmp_path, suite=SUITE.replace("seeds: 6", "seeds: 1"), name="one")
    found = estimates(by_optimizer(one)["to-adam"], "forgetting")[4]
    assert (found.value, found.interval, found.n) == (None, None, 1)
    assert "1 seed cannot show" in terminal(one)
    assert "+0.004\n" in "\n".join(line.rstrip() for line in re.sub(r" +", "\n", terminal(one)).splitlines()) + "\n"


def test_runs_without_switches_or_results_show_no_table(
    tmp_path: Path,
) -> None:
    text = re.sub(r"  (to-adam|control|noisy): .*\n", "", SUITE)
    plain = made(tmp_path, suite=text, name="plain")
    assert switchings(plain) == []
    assert TITLE not in terminal(plain)
    nothing = made(tmp_path, lambda trial: (0, 0, "missing"), name="nothing")
    assert list(switching_blocks(switchings(nothing), False, spread_text)) == []


# Barriers


def with_pairs(results: Results, values: Mapping[tuple[str, str], float | None], kind: str = "pair") -> Results:
    """Add these loss barriers to the results, and for each a row that must not be mistaken for it."""
    rows = []
    for (a, b), value in values.items():
        sides = [part for trial in (a, b) for part in trial.split("/")[2:4]]
        place = (a, b, "early", "net", *sides, int(a.rpartition("=")[2]))
        rows += [PairRow(*place, kind, "loss_barrier", value, None), PairRow(*place, kind, "linear_cka", -77.0, None)]
    pq.write_table(pairs_table(rows), results.run.path / f"{PAIRS}.parquet")
    return results_of(results.run.path)


def trial_id(optimizer: str, variant: str, seed: int) -> str:
    return f"early/net/{optimizer}/{variant}/seed={seed}"


def test_barriers_to_both_pure_solutions_are_means_over_seeds(tmp_path: Path) -> None:
    result = made(tmp_path)
    values: dict[tuple[str, str], float | None] = {}
    for seed in range(6):
        switched = trial_id("to-adam", "at=4", seed)
        values[switched, trial_id("sgd", "default", seed)] = 0.1 * seed
        # A pair may name its ends in either order.
        values[trial_id("adam", "default", seed), switched] = 2.0 if seed else None
    result = with_pairs(result, values)
    switch = by_optimizer(result)["to-adam"]
    first, then = (switch.barrier(switch.points[1], side) for side in ("first", "then"))
    assert first is not None
    assert then is not None
    assert (first.value, first.n) == (pytest.approx(0.25), 6)
    assert then == Estimate(pytest.approx(2.0), pytest.approx((2.0, 2.0)), 5)
    assert switch.barrier(switch.points[0], "first") is None
    text = terminal(result)
    assert "to A" in text
    assert "to B" in text
    assert "2.000 [2.000, 2.000]" in text
    told = json.loads(report_json(summarise([result])))["switches"][0]["points"]
    assert told[1]["barriers"]["first"]["value"] == pytest.approx(0.25)
    assert told[0]["barriers"] == {}


def test_without_pairs_there_are_no_barriers(tmp_path: Path) -> None:
    result = made(tmp_path)
    assert "barrier" not in terminal(result).lower()
    pair = {(trial_id("to-adam", "at=4", 0), trial_id("sgd", "default", 0)): 1.0}
    assert barriers(with_pairs(result, {})) == [None, None]
    assert barriers(with_pairs(result, pair)) == [1.0, None]


def barriers(result: Results) -> list[float | None]:
    """Return the barriers between the switch after 4 steps and SGD, with which it started, and Adam."""
    switching = by_optimizer(result)["to-adam"]
    [point] = [point for point in switching.points if point.k == 4]
    found = (switching.barrier(point, "first"), switching.barrier(point, "then"))
    return [barrier.value if barrier else None for barrier in found]


# In the report


def terminal(result: Results, width: int = 80) -> str:
    file = io.StringIO()
    show(run_report(summarise([result])), Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_fits_and_no_number_is_cut(results: Results, width: int) -> None:
    lines = terminal(results, width).splitlines()
    commands = [line for line in lines if "optbench run" in line]
    assert max(len(line) for line in lines if line not in commands) <= width
    text = "\n".join(lines)
    assert re.search(r"^ *4 +6 +0\.25 \[0\.25, 0\.25\]", text, re.MULTILINE)
    assert text.count("0.25 [0.25, 0.25]") == 3
    assert "+0.004 [0.004, 0.004]" in text


@pytest.mark.parametrize("name", ["markdown", "html", "latex"])
def test_every_text_format_shows_every_table(results: Results, name: str) -> None:
    text = render_text(run_report(summarise([results])), name).replace("{[}", "[").replace("{]}", "]")
    for said in ("0.25 [0.25, 0.25]", "100 (all)", "+0.004 [0.004, 0.004]", TITLE):
        assert said in text, said


def test_captions_name_the_switched_optimizers(results: Results) -> None:
    tables = [block for block in switching_blocks(switchings(results), False, spread_text) if isinstance(block, Table)]
    assert [table.caption for table in tables] == [
        "early, net, to-adam: sgd (A), then adam (B), state reset: ρ by k",
        "early, net, control: sgd, switched to itself, state reset: difference by k",
        "early, net, noisy: adam, with noise in its first k steps: difference by k",
    ]
    assert [cell.text for cell in tables[0].rows[1]] == ["4", "6", *["0.25 [0.25, 0.25]"] * 3]
    assert [column.title for column in tables[0].columns][2:] == [
        "average\naccuracy",
        "\nforgetting",
        "effective\nrank",
    ]
    assert tables[1].columns[3].title == "\nforgetting ↓"
    several = next(
        iter(block for block in switching_blocks(switchings(results), True, spread_text) if isinstance(block, Table))
    )
    assert several.caption.startswith("made, early, net, to-adam")


def test_records_have_rho_its_interval_and_n(results: Results) -> None:
    summary = summarise([results])
    told = json.loads(report_json(summary))
    lines = list(csv.DictReader(io.StringIO(report_csv(summary))))
    for rows in (told["results"], lines):
        found = {(row["optimizer"], row["variant"], row["metric"]): row for row in rows}
        row = found["to-adam", "at=4", "effective_rank"]
        numbers = [float(row[f"switch_{key}"]) for key in ("step", "value", "low", "high", "n")]
        assert numbers == pytest.approx([4, 0.25, 0.25, 0.25, 6])
        assert row["switch_statistic"] == "rho"
        assert found["control", "at=4", "forgetting"]["switch_statistic"] == "difference"
        nothing = found["sgd", "default", "forgetting"]
        assert {nothing[key] for key in nothing if key.startswith("switch_")} <= {None, ""}
    assert [(one["kind"], one["first"], one["then"], one["pure_first"]) for one in told["switches"]] == [
        ("switch", "sgd", "adam", "sgd"),
        ("control", "sgd", "sgd", "sgd"),
        ("noise", "adam with noise", "adam", None),
    ]
    point = told["switches"][0]["points"][2]
    assert (point["variant"], point["step"], point["whole"]) == ("at=100", 100, True)
    assert point["rho"]["forgetting"] == {
        "value": pytest.approx(1),
        "low": pytest.approx(1),
        "high": pytest.approx(1),
    } | {
        "n": 6,
        "reason": "",
    }
    assert not any("switchings" in run for run in told["runs"])


def test_reading_switches_imports_neither_torch_nor_pandas_nor_scipy(results: Results) -> None:
    program = (
        "import sys; from optbench.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    words = [sys.executable, "-c", program, "report", str(results.run.path), "--format", "markdown"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert TITLE in done.stdout
    assert done.stderr.strip() == "[]"


# Figures


def test_figures_show_every_seed_by_k_between_the_pure_solutions(results: Results) -> None:
    drawn = {figure.name: figure for figure in figures([results])}
    names = {name for name in drawn if name.startswith(("switch", "setting"))}
    assert names == {"switch_early_net_to-adam", "switch_early_net_control", "switch_early_net_noisy"}
    figure = drawn["switch_early_net_to-adam"]
    assert len(figure.panels) == 3
    assert "Horizontal lines: sgd alone, adam alone; means" in figure.caption
    assert "k = 4 0." in figure.alt
    axes = on_axes(figure.panels[0])
    dots = next(line for line in axes.lines if line.get_label() == SEEDS)
    assert sorted(set(dots.get_xdata())) == [0, 4, 10]  # 100 exceeds the 10 steps that were taken
    assert len(dots.get_xdata()) == 3 * 6
    assert axes.get_xscale() == "symlog"
    left = axes.transData.transform([(0, 0.7), (4, 0.7), (10, 0.7)])[:, 0]
    assert left[0] < left[1] < left[2]
    mean = 0.6 + math.fsum(WOBBLE) / 6
    levels = sorted(float(line.get_ydata()[0]) for line in axes.lines if line.get_label() == "_pure")
    assert levels == pytest.approx([mean, mean + 0.2])
    ends = {float(line.get_xdata()[0]): float(line.get_ydata()[0]) for line in axes.lines if line.get_label() == "_end"}
    assert ends == {0: pytest.approx(mean), 10: pytest.approx(mean + 0.2)}
    bands = [patch.get_height() for patch in axes.patches if patch.get_label() == "_band"]
    assert bands == pytest.approx([2 * np.std(WOBBLE, ddof=1)] * 2)
    # At k = 0 no step is noisy, so the point is the plain optimizer.
    noise = on_axes(drawn["switch_early_net_noisy"].panels[0])
    assert [tuple(line.get_xdata()) for line in noise.lines if line.get_label() == "_end"] == [(0,)]


def test_ends_of_a_sweep_are_drawn_differently_and_runs_side_by_side(tmp_path: Path) -> None:
    text = SUITE.replace(f"  sgd: {SGD}\n", "").replace(f"  adam: {ADAM}\n", "")
    both = [made(tmp_path / name, suite=text, name=name) for name in ("one", "two")]
    drawn = {figure.name: figure for figure in figures(both) if figure.name.startswith("switch")}
    assert set(drawn) == {f"switch_early_net_{name}" for name in ("to-adam", "control", "noisy")}
    figure = drawn["switch_early_net_to-adam"]
    assert len(figure.panels) == 2 * 3
    legend = figure.panels[3].series
    assert [one.label for one in legend] == ["to-adam (two)", "sgd lr=0.1 alone (two)", "adam alone (two)"]
    assert len({look(one).marker for one in legend}) == 3
    assert all("<svg" in panel for panel in to_svg(figure))


def test_switches_of_one_optimizer_have_separate_figures(tmp_path: Path) -> None:
    swept = "{target: sgd, lr: [0.1, 0.2]}"
    text = SUITE.replace(f"switch, first: {SGD}, then: {ADAM}", f"switch, first: {swept}, then: {ADAM}")
    drawn = {figure.name: figure.title for figure in figures([made(tmp_path, suite=text)])}
    assert drawn["switch_early_net_to-adam"] == "early, net: sgd (A), then adam (B), state reset"
    assert drawn["switch_early_net_to-adam_2"] == "early, net: sgd lr=0.2 (A), then adam (B), state reset"


def test_figures_can_be_drawn_for_one_seed_and_for_unfinished_runs(tmp_path: Path) -> None:
    one = made(tmp_path, suite=SUITE.replace("seeds: 6", "seeds: 1"), name="one")
    figure = next(figure for figure in figures([one]) if figure.name == "switch_early_net_to-adam")
    axes = on_axes(figure.panels[0])
    assert len([line for line in axes.lines if line.get_label() == "_pure"]) == 2
    assert not [patch for patch in axes.patches if patch.get_label() == "_band"]
    nothing = made(tmp_path, lambda trial: (0, 0, "missing"), name="nothing")
    assert not [figure for figure in figures([nothing]) if figure.name.startswith("switch")]
