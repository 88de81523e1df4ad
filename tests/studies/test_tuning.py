"""Tuning finds a planted optimum with equal budgets and separate seeds, and interruptions do not affect it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optbench.errors import SuiteError, UsageError
from optbench.execution.schedule import Plan
from optbench.execution.session import Options
from optbench.metrics import METRICS
from optbench.store import read_run
from optbench.studies.tuning.samplers import Tried, batch_size, draw
from optbench.studies.tuning.space import searches, tuning_seeds
from optbench.studies.tuning.statistics import TriedSetting, TunedOptimizer, choose, end_of_search, gated
from optbench.studies.tuning.tuned_suite import chosen_values
from optbench.studies.tuning.tuner import Method, Tuner, tune
from optbench.suite import Suite
from optbench.suite.variants import LISTED, variant_name

pytestmark = pytest.mark.usefixtures("_train_here")

EXPERIMENT: dict[str, Any] = {
    "tasks": {"kind": "permuted", "count": 1},
    "models": {"net": {"kind": "mlp", "hidden": [8]}},
    "protocol": {
        "batch_size": 32,
        "max_epochs": 100,
        "max_steps": 12,
        "early_stopping": None,
        "train_examples": 400,
        "validation_examples": 200,
        "test_examples": 100,
    },
}
RATES = {"log": [0.01, 1.0], "points": 5}


def suite_of(tune: Mapping[str, Any] | None = None, **changes: Any) -> Suite:
    content = {
        "name": "planted",
        "seeds": 6,
        "optimizers": {"sgd": {"target": "sgd", "lr": 0.1}, "adam": {"target": "adam", "lr": 0.001}},
        "experiments": {"e": EXPERIMENT},
        "tune": tune,
        **changes,
    }
    return Suite.model_validate(content)


# A quadratic with a known best learning rate replaces training.


def after_descent(rate: float, curvatures: Sequence[float] = (1.0, 9.0), steps: int = 30) -> float:
    """Return the loss of gradient descent on Σ h x²/2 from x = 1; for curvatures 1 and 9 the best rate is 2/(1 + 9)."""
    return sum(h / 2 * (1 - rate * h) ** (2 * steps) for h in curvatures)


BEST = 0.2


def judged(tuner: Tuner, loss: Any = after_descent) -> list[TunedOptimizer]:
    """Return results in which the accuracy of a setting is minus the logarithm of its loss on the quadratic."""
    found = []
    for search in tuner.searches.searches:
        tried = tuner.tried[search.experiment, search.optimizer]
        scored = []
        for values in tried:
            score = -math.log(min(loss(values[("lr",)]), 1e6) + 1e-12)
            names = {".".join(path): value for path, value in values.items()}
            scored.append(TriedSetting(variant_name(values), names, score, score, 2, 0, 0, 2))
        marked = gated(scored, None)
        chosen = choose(marked, None, "higher")
        assert chosen is not None
        space = {d.name: d.stated for d in search.dimensions}
        ends = {
            name: end
            for name, value in chosen.hyperparameters.items()
            if (end := end_of_search(value, [s.hyperparameters[name] for s in marked], space[name], "grid"))
        }
        found.append(
            TunedOptimizer(
                "run", "e", search.optimizer, ("net",), (1000, 1001), METRICS["average_accuracy"], None, "grid", space,
                tuple(marked), chosen, ends,
            )
        )  # fmt: skip
    return found


def searched(tuner: Tuner, loss: Any = after_descent) -> list[TunedOptimizer]:
    found: list[TunedOptimizer] = []
    while tuner.propose(found):
        found = judged(tuner, loss)
    return found


def rates(tuned: TunedOptimizer) -> list[float]:
    return [setting.hyperparameters["lr"] for setting in tuned.settings]


def test_a_grid_finds_the_planted_optimum() -> None:
    tuner = Tuner.of(suite_of({"optimizers": {"sgd": {"lr": [0.05, 0.1, 0.2, 0.3, 0.4]}}}), Method())
    (tuned,) = searched(tuner)
    assert tuned.chosen is not None
    assert tuned.chosen.hyperparameters == {"lr": BEST}
    assert tuned.edges == ()
    assert tuner.rounds == 1


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_random_and_tpe_sampling_come_close_to_the_planted_optimum(sampler: Any) -> None:
    tuner = Tuner.of(suite_of({"optimizers": {"sgd": {"lr": {"log": [1e-3, 10.0], "points": 5}}}}), Method(sampler, 40))
    (tuned,) = searched(tuner)
    assert len(tuned.settings) == len(set(rates(tuned))) == 40
    assert all(1e-3 <= rate <= 10 for rate in rates(tuned))
    assert tuned.chosen is not None
    chosen = tuned.chosen.hyperparameters["lr"]
    assert chosen == min(rates(tuned), key=after_descent)
    # All 40 draws over four decades miss the .4 decades below the optimum with probability 1.5%.
    assert -0.4 < math.log10(chosen / BEST) < 0.1


def test_the_parzen_estimator_samples_near_good_settings() -> None:
    spread = {}
    for sampler in ("random", "tpe"):
        tune = {"optimizers": {"sgd": {"lr": {"log": [1e-3, 10.0], "points": 5}}}}
        (tuned,) = searched(Tuner.of(suite_of(tune), Method(sampler, 40)))  # type: ignore[arg-type]
        later = rates(tuned)[batch_size(40) :]
        spread[sampler] = sum(abs(math.log10(rate / BEST)) < 0.5 for rate in later) / len(later)
    assert spread["tpe"] > 1.5 * spread["random"]


@pytest.mark.parametrize(("values", "beyond"), [([0.01, 0.02, 0.04], "largest"), ([0.5, 1.0, 2.0], "smallest")])
def test_a_best_value_at_the_edge_is_flagged_and_widening_finds_a_better_one(values: list[float], beyond: str) -> None:
    space = {"optimizers": {"sgd": {"lr": values}}}
    (tuned,) = searched(Tuner.of(suite_of(space), Method()))
    assert dict(tuned.ends) == {"lr": beyond}
    (wider,) = searched(Tuner.of(suite_of(space), Method(widen=True)))
    assert wider.chosen is not None
    assert wider.ends == {}
    # The steps of the grid are factors of two.
    assert 1 / 2 < wider.chosen.hyperparameters["lr"] / BEST < 2


def test_widening_one_search_gives_the_others_equally_many_settings() -> None:
    space = {"optimizers": {"sgd": {"lr": [0.01, 0.02, 0.04]}, "adam": {"lr": [0.1, 0.2, 0.4]}}}
    sgd, adam = searched(Tuner.of(suite_of(space), Method(widen=True)))
    assert len(sgd.settings) == len(adam.settings) > 3
    assert sgd.edges == adam.edges == ()
    assert all(0.1 <= rate <= 0.4 for rate in rates(adam)), "a best value inside the grid is refined"


def test_a_search_with_its_best_value_inside_is_not_widened() -> None:
    tuner = Tuner.of(suite_of({"optimizers": {"sgd": {"lr": [0.1, 0.2, 0.4]}}}), Method(widen=True))
    (tuned,) = searched(tuner)
    assert rates(tuned) == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("stated", [{"log": [1e-4, 1e-2], "points": 7}, [0.0001, 0.000464, 0.00215, 0.01]])
def test_a_widened_grid_has_the_values_of_the_larger_grid(stated: Any) -> None:
    tuner = Tuner.of(suite_of({"optimizers": {"sgd": {"lr": stated}}}), Method(widen=True))
    (tuned,) = searched(tuner, lambda rate: rate)
    assert len(rates(tuned)) >= 14
    steps = [10.0 ** (k / 3) for k in range(-60, 1)]
    assert set(rates(tuned)) <= {float(f"{step:.3g}") for step in steps}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.floats(0.02, 4), st.floats(-6, 2))
def test_widening_adds_no_value_within_one_percent_of_a_tried_one(points: int, decades: float, best: float) -> None:
    grid = {"log": [1e-3, 1e-3 * 10**decades], "points": points}
    other = {"log": [1e-2, 1e-2 * 10**decades], "points": points}
    tuner = Tuner.of(suite_of({"optimizers": {"sgd": {"lr": grid}, "adam": {"lr": other}}}), Method(widen=True))
    for tuned in searched(tuner, lambda rate: 0.01 * math.log(rate / 10**best) ** 2):
        for i, rate in enumerate(rates(tuned)[points:], points):
            assert all(abs(rate / tried - 1) > 0.01 for tried in rates(tuned)[:i])


def test_widening_stops_after_a_fixed_number_of_rounds() -> None:
    def falling(rate: float) -> float:
        return 1.0 / rate

    tuner = Tuner.of(suite_of({"optimizers": {"sgd": {"lr": [0.1, 0.2]}}}), Method(widen=True))
    (tuned,) = searched(tuner, falling)
    assert dict(tuned.ends) == {"lr": "largest"}
    assert len(tuned.settings) == 12


def test_widening_stays_within_the_range_that_the_optimizer_accepts() -> None:
    def rising(values: float) -> float:
        return 1.0 / values

    suite = suite_of({"optimizers": {"sgd": {"momentum": [0.5, 0.9]}}})
    tuner = Tuner.of(suite, Method(widen=True))
    tuner.propose([])
    search = tuner.searches.searches[0]
    scored = [
        TriedSetting(variant_name(v), {"momentum": v[("momentum",)]}, v[("momentum",)], v[("momentum",)], 2, 0, 0, 2)
        for v in tuner.tried["e", "sgd"]
    ]
    tuned = TunedOptimizer(
        "run", "e", "sgd", ("net",), (1000,), METRICS["average_accuracy"], None, "grid", {"momentum": [0.5, 0.9]},
        tuple(gated(scored, None)), replace(scored[1], learns=True), {"momentum": "largest"},
    )  # fmt: skip
    assert search.dimensions[0].values == (0.5, 0.9)
    assert not tuner.propose([tuned]), "1.62 is not a valid momentum"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_draws_are_reproducible_new_and_within_the_space(seed: int, count: int) -> None:
    (search,) = searches(
        suite_of({"optimizers": {"sgd": {"lr": {"log": [0.01, 1.0], "points": 3}, "nesterov": [False, True]}}})
    ).searches
    history = [Tried({("lr",): 0.1, ("nesterov",): False}, 0.5), Tried({("lr",): 0.5, ("nesterov",): True}, 0.7)]
    drawn = draw(search, history, count, "tpe", seed)
    assert drawn == draw(search, history, count, "tpe", seed)
    names = [variant_name(values) for values in [*drawn, *(one.values for one in history)]]
    assert len(set(names)) == len(names) == count + 2
    assert all(0.01 <= values[("lr",)] <= 1.0 and values[("nesterov",)] in (False, True) for values in drawn)


def test_an_exhausted_space_gives_no_more_settings() -> None:
    tuner = Tuner.of(suite_of({"optimizers": {"sgd": {"momentum": [0.0, 0.5, 0.9]}}}), Method("random", 20))
    found = searched_choices(tuner)
    assert sorted(found) == [0.0, 0.5, 0.9]


def searched_choices(tuner: Tuner) -> list[float]:
    tuner.propose([])
    assert not tuner.propose([])
    return [values[("momentum",)] for values in tuner.tried["e", "sgd"]]


# Budgets and seeds


def test_tuning_seeds_differ_from_the_suites_seeds() -> None:
    assert tuning_seeds(suite_of()) == [1000, 1001]
    assert tuning_seeds(suite_of(seeds=[1000, 1002]), 3) == [1001, 1003, 1004]
    assert tuning_seeds(suite_of({"seeds": [7, 8, 9]})) == [7, 8, 9]
    with pytest.raises(SuiteError, match=r"seed 5 is one of the suite's own"):
        Tuner.of(suite_of(), Method(), [5, 1000])


def test_budgets_must_be_equal() -> None:
    with pytest.raises(SuiteError, match=r"the same number of settings for every optimizer of e.*sgd 5, adam 3"):
        Tuner.of(suite_of({"optimizers": {"sgd": {"lr": RATES}, "adam": {"lr": [0.001, 0.01, 0.1]}}}), Method())


def test_by_default_learning_rates_are_searched_around_their_values() -> None:
    wrapped = {"target": "sam", "base": {"target": "sgd", "lr": 0.2}}
    swept = {"target": "sgd", "lr": [0.1, 0.2]}
    suite = suite_of(optimizers={"adam": {"target": "adam"}, "sam": wrapped, "swept": swept})
    found = searches(suite)
    assert {s.optimizer: s.dimensions[0].stated for s in found.searches} == {
        "adam": {"log": [0.0001, 0.01], "points": 7},
        "sam": {"log": [0.02, 2.0], "points": 7},
    }
    assert found.searches[1].dimensions[0].path == ("base", "lr")
    assert [(left.experiment, left.optimizer) for left in found.left] == [("e", "swept")], (
        "a sweep in the suite is left unchanged"
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lr": 0.1}, r"tune.optimizers.sgd.lr: expected a list of at least two values.*got 0.1"),
        ({"lr": [0.1]}, r"tune.optimizers.sgd.lr: expected a list of at least two values"),
        ({"lr": []}, r"tune.optimizers.sgd.lr: 'lr' is an empty list"),
        ({"lr": {"log": [0.1, 1.0]}}, r"tune.optimizers.sgd.lr: 'lr': expected a grid such as"),
        ({"rate": [0.1, 0.2]}, r"tune.optimizers.sgd: unknown hyper-parameter 'rate' of sgd"),
        ({"lr": [0.1, -0.2]}, r"tune.optimizers.sgd: hyper-parameter 'lr' of sgd"),
        ({}, r"tune.optimizers.sgd: expected hyper-parameters to search"),
        (
            {"lr": {"of": "adam.lr", "times": -1}},
            r"tune.optimizers.sgd.lr: 'times': expected a positive number, got -1",
        ),
        ({"lr": {"of": "other.lr"}}, r"tune.optimizers.sgd.lr: 'of': expected a hyper-parameter of one"),
        (
            {"lr": {"of": "adam.eps"}},
            r"tune.optimizers.sgd.lr: 'of': expected a hyper-parameter that is tuned on e, got adam.eps; "
            r"did you mean 'adam.lr'\?",
        ),
    ],
)
def test_an_invalid_space_is_refused_with_its_place(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        Tuner.of(suite_of({"optimizers": {"sgd": space, "adam": {"lr": [0.1, 0.2]}}}), Method())


def test_a_suite_without_anything_to_choose_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to choose in suite 'planted'"):
        Tuner.of(suite_of(optimizers={"swept": {"target": "sgd", "lr": [0.1, 0.2]}}), Method())


def test_a_tied_setting_follows_the_choice_of_the_other_optimizer() -> None:
    tie = {"lr": {"of": "adam.lr", "times": 4}, "momentum": {"of": "adam.lr"}}
    tuner = Tuner.of(suite_of({"optimizers": {"sgd": tie, "adam": {"lr": [0.1, 0.2, 0.3]}}}), Method())
    found = searched(tuner)
    assert [search.optimizer for search in tuner.searches.searches] == ["adam"]
    assert chosen_values(tuner, found)["e", "sgd"] == {("lr",): 0.8, ("momentum",): 0.2}


def test_the_tuning_suite_has_every_setting_and_no_other_metrics() -> None:
    suite = suite_of(
        {"optimizers": {"sgd": {"lr": RATES}}, "experiments": {"e": {"models": ["net"]}}},
        claims={"c": {"experiment": "e", "metric": "forgetting", "left": "sgd", "right": "adam", "expect": "lower"}},
    )
    tuner = Tuner.of(suite, Method())
    tuner.propose([])
    made = tuner.tuning_suite
    assert (made.name, made.stage, made.seeds, dict(made.claims)) == ("planted-tune", "tune", [1000, 1001], {})
    assert list(made.optimizers) == ["sgd"]
    experiment = made.experiments["e"]
    assert experiment.metrics == []
    assert not experiment.checkpoints
    assert experiment.optimizers is not None
    assert [s["lr"] for s in experiment.optimizers["sgd"][LISTED]] == [0.01, 0.0316, 0.1, 0.316, 1.0]
    assert made.tune is not None
    assert made.tune.experiments["e"].optimizers == {"sgd": {"lr": RATES}}


def test_every_experiment_takes_the_metric_it_is_tuned_by() -> None:
    suite = suite_of(
        {"optimizers": {"sgd": {"lr": RATES}}, "experiments": {"online": {"metric": "online_accuracy"}}},
        experiments={"e": EXPERIMENT, "online": EXPERIMENT},
    )
    tuner = Tuner.of(suite, Method())
    tuner.propose([])
    made = tuner.tuning_suite
    assert made.experiments["e"].metrics == []
    assert [entry.name for entry in made.experiments["online"].metrics or ()] == ["online_accuracy"]
    assert made.tune is not None
    assert [made.tune.metric_on(name).name for name in ("e", "online")] == ["average_accuracy", "online_accuracy"]


class Interrupting:
    """A view that raises KeyboardInterrupt after a number of cohorts."""

    def __init__(self, after: int | None) -> None:
        self.after, self.cohorts = after, 0

    def started(self, plan: Plan, path: Path, device: str, jobs: int) -> None: ...
    def progress(self, progress: object) -> None: ...
    def warning(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def details(self, text: str) -> None: ...

    def finished(self, rows: object) -> None:
        self.cohorts += 1
        if self.cohorts == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", [Method(widen=True), Method("tpe", 8)], ids=["widened", "tpe"])
def test_interrupted_and_resumed_tuning_equals_uninterrupted_tuning(tmp_path: Path, method: Method) -> None:
    spaces = {"sgd": {"lr": {"log": [0.01, 1.0], "points": 2}}, "adam": {"lr": {"log": [0.01, 0.02], "points": 2}}}

    def go(name: str, after: int | None, resume: bool = False) -> tuple[Any, int]:
        view = Interrupting(after)
        path = tmp_path / name
        options = Options(device="cpu", runs_dir=tmp_path, name=name, jobs=1, resume=path if resume else None)
        outcome, found = tune(
            Tuner.of(suite_of({"optimizers": spaces}), method), options, view, {"sampler": method.sampler}, {}
        )
        assert outcome.interrupted == (after is not None)
        return found, view.cohorts

    whole, cohorts = go("whole", None)
    assert cohorts > 3
    after = 3  # the first in the second round
    go("cut", after)
    assert read_run(tmp_path / "cut").record["status"] == "interrupted"
    resumed, rest = go("cut", None, resume=True)
    assert rest == cohorts - after, "no cohort is trained twice"
    assert [repr(replace(tuned, run="")) for tuned in resumed] == [repr(replace(tuned, run="")) for tuned in whole]
    for table in ("trials", "accuracy", "curves"):
        a, b = (pd.read_parquet(tmp_path / name / f"{table}.parquet") for name in ("whole", "cut"))
        timed = [column for column in a.columns if column.endswith("_seconds")]
        pd.testing.assert_frame_equal(a.drop(columns=timed), b.drop(columns=timed), check_exact=True)
    assert (tmp_path / "whole/suite.yaml").read_text() == (tmp_path / "cut/suite.yaml").read_text()
