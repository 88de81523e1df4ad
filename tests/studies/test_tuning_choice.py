"""The choice of a tuning run: its rule against a slow reference, and values at the edge of the search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.errors import SuiteError
from optbench.plan import Trial
from optbench.stats.arms import arms
from optbench.stats.results import Results
from optbench.store.tables import AccuracyRow, Row
from optbench.studies.tuning.statistics import (
    TriedSetting,
    TunedOptimizer,
    choose,
    departures,
    end_of_search,
    gated,
    tunings,
)
from tests.written_runs import results_of, trial_row, write_run

RATES = [0.01, 0.1, 1.0]


def setting(score: float, learning: float, ok: int = 2, planned: int = 2, **counts: int) -> TriedSetting:
    given = {"diverged": 0, "failed": 0, **counts}
    return TriedSetting(f"s={score},{learning}", {}, score, learning, ok, planned=planned, **given)


# The rule


def test_the_rule_chooses_the_best_setting_that_learns() -> None:
    slow, fast, faster = setting(0.95, 0.90), setting(0.93, 0.95), setting(0.90, 0.96)
    assert choose([slow, fast, faster], 0.03, "higher") is fast, "the slow setting would win by forgetting less"
    assert choose([slow, fast, faster], None, "higher") is slow
    assert choose([slow, fast, faster], 0.03, "lower") is faster
    assert [s.learns for s in gated([slow, fast, faster], 0.03)] == [False, True, True]
    assert [s.learns for s in gated([slow, fast, faster], None)] == [True, True, True]


def test_the_margin_is_inclusive_and_rounding_does_not_matter() -> None:
    best, at, below = setting(0.5, 0.52), setting(0.6, 0.47), setting(0.7, 0.4699)
    assert 0.52 - 0.05 > 0.47, "in binary the setting at the margin is below it"
    assert choose([best, at, below], 0.05, "higher") is at


def test_ties_are_broken_in_favour_of_the_first_setting() -> None:
    one, other = setting(0.9, 0.9), setting(0.9, 0.91)
    assert choose([one, other], 0.03, "higher") is one
    assert choose([other, one], 0.03, "higher") is other
    # (.1 + .2) + .3 and .1 + (.2 + .3) differ in the last bit.
    assert choose([low := setting(0.6, 0.9), setting(0.6000000000000001, 0.9)], 0.03, "higher") is low


@pytest.mark.parametrize(
    "bad",
    [
        setting(math.nan, math.nan, ok=1, diverged=1),
        setting(0.99, 0.99, ok=1, failed=1),
        setting(0.99, 0.99, ok=1),
        setting(math.nan, 0.99),
    ],
    ids=["diverged", "failed", "unfinished", "undefined"],
)
def test_a_setting_with_a_bad_trial_is_not_chosen_and_does_not_set_the_threshold(bad: TriedSetting) -> None:
    good = setting(0.5, 0.6)
    assert choose([bad, good], 0.03, "higher") is good
    assert choose([bad, bad], 0.03, "higher") is None
    assert choose([bad], None, "higher") is None


def test_no_settings_give_no_choice() -> None:
    assert choose([], 0.03, "higher") is None


def slow_choice(settings: Sequence[TriedSetting], margin: float | None, direction: str) -> int | None:
    """Apply the rule literally and return an index; values are thousandths, so that nothing is rounded."""
    whole = [i for i, s in enumerate(settings) if s.ok == s.planned]
    if margin is not None and whole:
        best = max(round(1000 * settings[i].learning) for i in whole)
        whole = [i for i in whole if best - round(1000 * settings[i].learning) <= round(1000 * margin)]
    scores = {i: round(1000 * settings[i].score) for i in whole}
    if not scores:
        return None
    wanted = max(scores.values()) if direction == "higher" else min(scores.values())
    return min(i for i, score in scores.items() if score == wanted)


thousandths = st.integers(0, 1000).map(lambda n: n / 1000)
some_settings = st.lists(
    st.builds(setting, thousandths, thousandths, ok=st.sampled_from([2, 2, 2, 1])), min_size=1, max_size=8
)


@given(some_settings, st.one_of(st.none(), thousandths), st.sampled_from(["higher", "lower"]))
def test_the_choice_agrees_with_the_slow_reference(
    settings: list[TriedSetting], margin: float | None, direction: Literal["higher", "lower"]
) -> None:
    expected = slow_choice(settings, margin, direction)
    found = choose(settings, margin, direction)
    assert found is (None if expected is None else settings[expected])


@given(some_settings, st.one_of(st.none(), thousandths), thousandths)
def test_a_wider_margin_never_lowers_the_chosen_score(
    settings: list[TriedSetting], margin: float | None, more: float
) -> None:
    narrow, wide = choose(settings, margin, "higher"), choose(settings, margin and margin + more, "higher")
    assert (narrow is None) == (wide is None)
    assert narrow is None or wide is None or wide.score >= narrow.score - 1e-9


# Edges of the search


@pytest.mark.parametrize(
    ("value", "tried", "space", "sampler", "end"),
    [
        (0.1, RATES, None, "grid", None),
        (1.0, RATES, None, "grid", "largest"),
        (0.01, RATES, None, "grid", "smallest"),
        (1.0, RATES, [0.1, 1.0, 10.0], "grid", None),
        (1.0, [*RATES, 3.0], {"log": [0.01, 1.0], "points": 3}, "grid", None),
        (0.95, RATES, None, "grid", None),
        (0.95, [0.5, 0.95], {"log": [0.01, 1.0], "points": 3}, "tpe", "largest"),
        (0.0125, [0.0125, 0.5], {"log": [0.01, 1.0]}, "random", "smallest"),
        (0.0127, [0.0127, 0.5], {"log": [0.01, 1.0]}, "random", None),
        (0.79, [0.5, 0.79], {"log": [0.01, 1.0]}, "tpe", None),
        (0.0, [0.0, 0.5, 0.9], None, "grid", None),
        (0.01, [0.0, 0.01, 0.9], None, "tpe", None),
        (0.9, [0.0, 0.5, 0.9], None, "grid", "largest"),
        (-1, [-1, 0, 1], None, "grid", "smallest"),
        (4, [1, 2, 4], None, "grid", "largest"),
        (0.1, [0.1], {"log": [0.1, 1.0], "points": 2}, "grid", None),
        (True, [True, False], None, "grid", None),
        ("kronecker", ["diagonal", "kronecker"], None, "grid", None),
        ([0.9, 0.99], [[0.9, 0.9], [0.9, 0.99]], None, "grid", None),
    ],
)
def test_values_at_the_edge_of_the_search_are_recognised(
    value: Any, tried: list[Any], space: Any, sampler: Any, end: str | None
) -> None:
    assert end_of_search(value, tried, space, sampler) == end


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=9, unique=True))
def test_exactly_two_values_of_a_grid_are_at_an_edge(values: list[float]) -> None:
    ends = {value: end_of_search(value, values, None, "grid") for value in values}
    assert {v for v, end in ends.items() if end} == {min(values), max(values)}
    assert ends[max(values)] == "largest"


# Tuning read from a run


SUITE = """
name: tuned
stage: tune
seeds: [7, 8]
optimizers:
  sgd: {target: sgd, lr: [0.01, 0.1, 1.0]}
  sam: {target: sam, base: {target: sgd, lr: [0.1, 0.2], nesterov: false}, rho: [0.05, 0.5]}
  alone: {target: adam}
experiments:
  one:
    tasks: {kind: permuted, count: 2}
    models: {narrow: {kind: mlp, hidden: [4]}, wide: {kind: mlp, hidden: [8]}}
  two:
    tasks: {kind: permuted, count: 1}
    models: {narrow: {kind: mlp, hidden: [4]}}
    optimizers: [sgd]
"""


def validation_matrix(trial: Trial) -> list[list[float]]:
    """Return a matrix (T+1, T) that depends only on the id of the trial."""
    tasks = 2 if trial.experiment == "one" else 1
    values: list[list[float]] = np.random.default_rng(list(trial.id.encode())).uniform(0.8, 0.9, (tasks + 1, tasks))
    return np.asarray(values).tolist()


def trial_rows(trial: Trial, status: str = "ok") -> list[Row]:
    """Return rows whose values on test data would reverse every choice."""
    rows: list[Row] = [trial_row(status)]
    for after, line in enumerate(validation_matrix(trial)):
        rows += [AccuracyRow(after, j + 1, 1 - value, None, 9, value, None) for j, value in enumerate(line)]
    return rows


def tuned_run(folder: Path, text: str = SUITE, statuses: Mapping[str, str | None] | None = None, **record: Any) -> Path:
    """Write a run. statuses: maps a part of a trial's id to its status, None for not finished."""

    def rows(trial: Trial) -> list[Row]:
        status = next((s for part, s in (statuses or {}).items() if part in trial.id), "ok")
        return [] if status is None else trial_rows(trial, status)

    return write_run(folder, text, rows, **record)


def by_name(results: Results) -> dict[tuple[str, str], TunedOptimizer]:
    return {(tuned.experiment, tuned.optimizer): tuned for tuned in tunings(results)}


def expected_scores(results: Results, experiment: str, optimizer: str, *, learning: bool) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for trial in results.trials:
        if (trial.experiment, trial.optimizer) == (experiment, optimizer):
            matrix = np.array(validation_matrix(trial))
            value = np.diagonal(matrix[1:]).mean() if learning else matrix[-1].mean()
            found.setdefault(trial.variant, []).append(float(value))
    return {variant: fmean(values) for variant, values in found.items()}


def test_scores_are_means_of_validation_accuracy_over_models_and_seeds(tmp_path: Path) -> None:
    results = results_of(tuned_run(tmp_path))
    found = by_name(results)
    assert list(found) == [("one", "sgd"), ("one", "sam"), ("one", "alone"), ("two", "sgd")]
    for (experiment, optimizer), tuned in found.items():
        scores = expected_scores(results, experiment, optimizer, learning=False)
        learnt = expected_scores(results, experiment, optimizer, learning=True)
        assert {s.variant: s.score for s in tuned.settings} == pytest.approx(scores)
        assert {s.variant: s.learning for s in tuned.settings} == pytest.approx(learnt)
        learning = {v: score for v, score in scores.items() if learnt[v] >= max(learnt.values()) - 0.03}
        assert tuned.chosen is not None
        assert tuned.chosen.variant == max(learning, key=lambda variant: learning[variant])
        assert (tuned.metric.name, tuned.margin, tuned.sampler, tuned.space) == ("average_accuracy", 0.03, "grid", None)
        assert tuned.seeds == (7, 8)
    assert found["one", "sgd"].models == ("narrow", "wide")
    planned = [s.planned for s in found["one", "sgd"].settings]
    assert planned == [4, 4, 4], "two models and two seeds"


def test_tried_settings_are_the_ones_that_vary(tmp_path: Path) -> None:
    found = by_name(results_of(tuned_run(tmp_path)))
    tried = [dict(s.hyperparameters) for s in found["one", "sam"].settings]
    assert len(tried) == 4
    assert all(set(values) == {"base.lr", "rho"} for values in tried)
    assert found["one", "sam"].values("base.lr") == [0.1, 0.2]
    assert [dict(s.hyperparameters) for s in found["one", "alone"].settings] == [{}]
    assert [s.hyperparameters["lr"] for s in found["one", "sgd"].settings] == RATES


def test_a_run_without_tuning_has_no_tunings_and_uses_test_data(tmp_path: Path) -> None:
    tuning, other = (
        results_of(tuned_run(tmp_path, SUITE.replace("stage: tune", f"stage: {stage}"), name=stage))
        for stage in ("tune", "eval")
    )
    assert (tuning.split, other.split) == ("validation", "test")
    assert tunings(other) == []
    for trial in tuning.trials:
        assert np.allclose(tuning.matrices[trial.id], validation_matrix(trial))
        assert np.allclose(other.matrices[trial.id], 1 - np.array(validation_matrix(trial)))


def test_diverged_failed_and_unfinished_settings_are_counted_and_not_chosen(tmp_path: Path) -> None:
    statuses = {
        "one/wide/sgd/lr=0.01/seed=8": "diverged",
        "one/narrow/sgd/lr=0.1/seed=7": "failed",
        "one/narrow/sgd/lr=1/": None,
        "two/narrow/sgd/lr=0.01/seed=7": "diverged",
    }
    found = by_name(results_of(tuned_run(tmp_path, statuses=statuses)))
    tuned = found["one", "sgd"]
    counts = [(s.ok, s.diverged, s.failed, s.missing) for s in tuned.settings]
    assert counts == [(3, 1, 0, 0), (3, 0, 1, 0), (2, 0, 0, 2)]
    assert all(math.isnan(s.score) and math.isnan(s.learning) and not s.by_seed for s in tuned.settings)
    assert (tuned.chosen, tuned.edges, tuned.least_learning) == (None, (), None)
    chosen = found["two", "sgd"].chosen
    assert chosen is not None
    assert chosen.variant != "lr=0.01"


TUNE = """
tune:
  metric: {metric}
  learning_margin: null
  optimizers:
    sgd: {{lr: {{log: [0.001, 1.0], points: 4}}}}
    sam: {{base: {{lr: [0.1, 0.2]}}, rho: {{of: sgd.lr, times: 2}}}}
  experiments:
    one: {{models: [wide], optimizers: {{sgd: {{lr: [0.01, 0.1, 1.0, 10.0]}}}}}}
"""


def test_the_rule_and_space_of_the_suite_are_used(tmp_path: Path) -> None:
    results = results_of(tuned_run(tmp_path, SUITE + TUNE.format(metric="forgetting"), tune={"sampler": "tpe"}))
    found = by_name(results)
    one, two, sam = found["one", "sgd"], found["two", "sgd"], found["one", "sam"]
    assert one.models == ("wide",)
    assert [s.planned for s in one.settings] == [2, 2, 2]
    assert (one.metric.name, one.margin, one.sampler) == ("forgetting", None, "tpe")
    assert one.space == {"lr": [*RATES, 10.0]}
    assert two.space == {"lr": {"log": [0.001, 1.0], "points": 4}}
    assert sam.space == {"base.lr": [0.1, 0.2], "rho": {"of": "sgd.lr", "times": 2}}
    assert found["one", "alone"].space is None
    assert one.chosen is not None
    assert one.chosen.score == min(s.score for s in one.settings), "lower forgetting is better"
    assert two.chosen is None, "a single task cannot be forgotten"


STEEP = """
name: steep
stage: tune
seeds: 2
optimizers: {{sgd: {{target: sgd, lr: [0.01, 0.1, 1.0]}}}}
experiments: {{one: {{tasks: {{kind: permuted, count: 2}}, models: {{net: {{kind: mlp}}}}}}}}
tune: {{metric: {metric}, learning_margin: null}}
"""


@pytest.mark.parametrize(("metric", "end"), [("average_accuracy", "largest"), ("forgetting", "smallest")])
def test_edges_refer_to_the_chosen_setting(tmp_path: Path, metric: str, end: str) -> None:
    def rows(trial: Trial) -> list[Row]:
        # A higher learning rate learns better and forgets more.
        rate = float(trial.hyperparameters["lr"])
        learnt, left = 0.5 + 0.4 * rate, 0.5 + 0.1 * rate
        matrix = [[0.1, 0.1], [learnt, 0.1], [left, learnt]]
        values = [(i, j, v) for i, line in enumerate(matrix) for j, v in enumerate(line, start=1)]
        return [trial_row(), *(AccuracyRow(i, j, None, None, 9, v, None) for i, j, v in values)]

    (tuned,) = tunings(results_of(write_run(tmp_path, STEEP.format(metric=metric), rows)))
    assert tuned.edges == ("lr",)
    assert tuned.ends == {"lr": end}


def test_a_tuning_metric_that_does_not_use_accuracies_is_refused(tmp_path: Path) -> None:
    path = tuned_run(tmp_path, SUITE + TUNE.format(metric="forgetting"))
    text = (path / "suite.yaml").read_text()
    (path / "suite.yaml").write_text(text.replace("metric: forgetting", "metric: hoyer"))
    results = results_of(path)
    with pytest.raises(SuiteError, match=r"suite\.yaml: tune\.metric: expected a metric of accuracies .*, got hoyer"):
        tunings(results)


def test_departures_from_the_tuned_values_are_found(tmp_path: Path) -> None:
    text = """
name: told
seeds: 1
optimizers: {sgd: {target: sgd, lr: 0.2}, sam: {target: sam, base: {target: sgd, lr: 1}}, adam: {target: adam}}
experiments:
  one:
    tasks: {kind: permuted}
    models: {net: {kind: mlp}}
    tuning:
      sgd: {settings: 3, seeds: 2, chosen: {lr: 0.1, momentum: 0.0}}
      sam: {settings: 3, seeds: 2, chosen: {base.lr: 1.0}}
"""
    found = {arm.optimizer: departures(arm) for arm in arms(results_of(write_run(tmp_path, text, lambda trial: [])))}
    assert found == {"sgd": {"lr": 0.2}, "sam": {}, "adam": {}}
