"""Null in an extending suite removes a part of the base, and with it the base's references to the part."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli import main
from optbench.errors import SuiteError
from optbench.studies.tuning.space import searches
from optbench.suite import Suite, dump_suite, load_suite, shipped_suites
from optbench.suite.extends import read_document

BASE = """\
name: base
seeds: 3
optimizers: {sgd: {target: sgd}, adam: {target: adam, lr: [0.001, 0.01]}, lion: {target: lion}}
experiments:
  e: &e
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [10]}, wide: {kind: mlp}}
    optimizers: [adam, sgd, lion]
    tuning: {sgd: &budget {settings: 3, seeds: 2}, adam: *budget}
    pairs: {against: [adam, sgd], controls: [adam]}
    twins: [[adam, sgd], [sgd, lion]]
  f:
    <<: *e
    optimizers: {adam: {lr: 0.1}, sgd: {}}
    tuning: null
    pairs: null
    twins: [[sgd, adam]]
claims:
  one: {experiment: e, metric: forgetting, left: adam lr=0.001, right: 0, expect: lower}
  two: {experiment: e, metric: forgetting, left: sgd, right: lion, expect: lower, given: [one, four]}
  pair: {experiment: e, metric: weight_distance, left: [sgd, adam], right: [adam, adam], expect: higher}
  four: {experiment: f, metric: forgetting, left: sgd, right: 1, expect: lower, models: [wide, net]}
  five: {experiment: f, metric: forgetting, left: sgd, right: 2, expect: lower, models: [wide]}
tune:
  optimizers: {sgd: {lr: [0.1]}, adam: {lr: [0.1]}, lion: {lr: [0.1]}}
  experiments:
    e: {optimizers: {adam: {lr: [0.2]}}, models: [wide]}
    f: {models: [net, wide]}
"""


@pytest.fixture(autouse=True)
def _base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)


def load(own: str, base: str = "base.yaml") -> tuple[Suite, list[str]]:
    """Return the suite that extends a base, and the remarks on it."""
    Path("own.yaml").write_text(f"extends: {base}\n{own}\n")
    notes: list[str] = []
    return load_suite(Path("own.yaml"), note=notes.append), notes


def test_an_optimizer_is_removed_with_every_kind_of_reference() -> None:
    suite, notes = load("optimizers: {adam: null}")
    e, f = suite.experiments["e"], suite.experiments["f"]
    assert (suite.optimizers.keys(), e.optimizers) == ({"sgd", "lion"}, {"sgd": {}, "lion": {}})
    assert f.optimizers == {"sgd": {}}
    assert e.tuning is not None
    assert e.tuning.keys() == {"sgd"}
    assert e.pairs is not None
    assert (e.pairs.against, e.pairs.controls) == (["sgd"], [])
    assert (e.twins, f.twins) == ([["sgd", "lion"]], None)
    assert suite.claims.keys() == {"two", "four", "five"}
    assert suite.claims["two"].given == ["four"]
    assert suite.tune is not None
    assert (suite.tune.optimizers or {}).keys() == {"sgd", "lion"}
    assert suite.tune.experiments["e"].optimizers == {}
    assert notes == [
        "own.yaml:2:14: optimizers.adam: null also removes its uses in experiments.e (optimizers, tuning, pairs, "
        "twins), tune, claims.two (given) and experiments.f (optimizers, twins), and 2 claims (one, pair) from the "
        "extended suite"
    ]


def test_an_optimizer_can_be_removed_from_one_experiment() -> None:
    suite, notes = load("experiments: {e: {optimizers: {adam: null}}}")
    untouched = load_suite(Path("base.yaml"))
    assert suite.optimizers == untouched.optimizers
    assert suite.experiments["f"] == untouched.experiments["f"]
    assert suite.experiments["e"] == load("optimizers: {adam: null}")[0].experiments["e"]
    assert suite.tune is not None
    assert untouched.tune is not None
    assert suite.tune.optimizers == untouched.tune.optimizers
    assert len(notes) == 1


def test_a_model_is_removed_with_every_kind_of_reference() -> None:
    suite, (note,) = load("experiments: {f: {models: {wide: null}}}")
    assert suite.experiments["f"].models.keys() == {"net"}
    assert suite.claims.keys() == {"one", "two", "pair", "four"}
    assert suite.claims["four"].models == ["net"]
    assert suite.tune is not None
    assert (suite.tune.experiments["f"].models, suite.tune.experiments["e"].models) == (["net"], ["wide"])
    assert "its uses in tune and claims.four (models), and 1 claim (five)" in note
    suite, _ = load("experiments: {e: {models: {wide: null}}}")
    assert suite.tune is not None
    assert suite.tune.experiments["e"].models is None, "the metric is averaged over the models that are left"


def test_an_experiment_is_removed_with_its_claims_and_its_tuning() -> None:
    suite, _ = load("experiments: {f: null}")
    assert suite.claims.keys() == {"one", "two", "pair"}
    assert suite.claims["two"].given == ["one"]
    assert suite.tune is not None
    assert suite.tune.experiments.keys() == {"e"}


def test_a_claim_is_removed_from_the_claims_that_depend_on_it() -> None:
    assert load("claims: {one: null}")[0].claims["two"].given == ["four"]


def test_references_in_the_extending_file_are_errors() -> None:
    for own, path in (
        ("claims: {one: {margin: 0.1}}", "claims"),
        ("claims: {new: {experiment: e, metric: forgetting, left: adam, right: sgd, expect: lower}}", "claims.new"),
        ("experiments: {e: {optimizers: [sgd, adam]}}", "experiments.e.optimizers"),
        ("experiments: {e: {tuning: {adam: {settings: 4, seeds: 2}}}}", "experiments.e.tuning"),
        ("experiments: {e: {pairs: {against: [adam]}}}", "experiments.e.pairs.against"),
        ("experiments: {e: {twins: [[sgd, adam]]}}", "experiments.e.twins"),
        ("tune: {optimizers: {adam: {lr: [0.3]}}}", "tune.optimizers"),
    ):
        with pytest.raises(SuiteError, match=rf"own\.yaml:[23]:\d+: .*{path}"):
            load(f"optimizers: {{adam: null}}\n{own}")


def test_removals_that_the_extending_file_states_itself_are_not_remarked_on() -> None:
    nothing = "pairs: null, twins: null, tuning: null, optimizers: [sgd, lion]"
    own = f"claims: null\ntune: null\nexperiments: {{e: {{{nothing}}}, f: {{{nothing}}}}}"
    assert load(f"optimizers: {{adam: null}}\n{own}")[1] == []


FOLLOWING = """\
name: following
seeds: 3
optimizers: {sgd: {target: sgd}, adam: {target: adam}, lion.2: {target: lion}, lion: {target: lion}}
experiments: {e: {tasks: {kind: permuted, count: 2}, models: {net: {kind: mlp}}, optimizers: [sgd, adam, lion.2, lion]}}
tune:
  optimizers:
    sgd: {lr: [0.1, 0.2]}
    adam: {lr: {of: sgd.lr, times: 0.1}, eps: [1.0e-8, 1.0e-6]}
    lion: {lr: {of: lion.2.lr}}
    lion.2: {lr: [0.1, 0.2]}
  experiments: {e: {optimizers: {lion: {lr: {of: adam.eps}}}}}
"""


def test_search_spaces_that_follow_a_removed_optimizer_are_removed() -> None:
    Path("following.yaml").write_text(FOLLOWING)
    for removal in ("optimizers: {sgd: null}", "experiments: {e: {optimizers: {sgd: null}}}"):
        suite, (note,) = load(removal, "following.yaml")
        assert suite.tune is not None
        assert (suite.tune.optimizers or {}).keys() - {"sgd"} == {"lion", "lion.2"}
        assert "tune" in note
    suite, _ = load("optimizers: {adam: null}", "following.yaml")
    assert suite.tune is not None
    assert suite.tune.experiments["e"].optimizers == {}
    assert [search.optimizer for search in searches(suite).searches] == ["sgd", "lion.2"]
    suite, _ = load("optimizers: {lion: null}", "following.yaml")
    assert len(searches(suite).searches) == 3, "lion.2.lr is not a hyper-parameter of lion"


def test_a_search_space_of_the_extending_file_that_follows_a_removed_optimizer_is_an_error() -> None:
    Path("following.yaml").write_text(FOLLOWING)
    for own in (
        "optimizers: {adam: {eps: [1.0e-8, 1.0e-7]}}",
        "experiments: {e: {optimizers: {lion: {lr: {of: sgd.lr}}}}}",
    ):
        with pytest.raises(SuiteError, match=r"yaml:\d+:\d+: .*sgd") as caught:
            load(f"optimizers: {{sgd: null}}\ntune: {{{own}}}", "following.yaml")
        assert "\n" not in str(caught.value)


def test_faults_in_what_is_left_keep_their_places() -> None:
    base = Path("base.yaml").read_text().replace("[[adam, sgd], [sgd, lion]]", "[[adam, sgd], [sgd, lionn]]")
    Path("base.yaml").write_text(base.replace("controls: [adam]", "controls: [adam, sdg]"))
    with pytest.raises(SuiteError) as caught:
        load("optimizers: {adam: null}")
    places = [str(line).partition(": ")[0] for line in str(caught.value).splitlines()]
    assert places == ["base.yaml:10:52", "base.yaml:11:32"], caught.value


@pytest.mark.parametrize("name", shipped_suites())
def test_every_optimizer_model_and_experiment_of_a_shipped_suite_can_be_removed_in_one_line(name: str) -> None:
    """The one exception is what a suite cannot do without, which is one error that names it."""
    path = shipped_suites()[name]
    raw = read_document(path).value
    removals = [f"optimizers: {{{optimizer}: null}}" for optimizer in raw["optimizers"]]
    removals += [f"experiments: {{{experiment}: null}}" for experiment in raw["experiments"]]
    for e, settings in raw["experiments"].items():
        removals += [f"experiments: {{{e}: {{models: {{{model}: null}}}}}}" for model in settings["models"]]
    refused = []
    for removal in removals:
        try:
            suite, _ = load(removal, name)
        except SuiteError as error:
            refused.append(error)
            continue
        Path("again.yaml").write_text(dump_suite(suite))
        assert load_suite(Path("again.yaml")) == suite
        if suite.tune is not None:
            assert searches(suite).searches
    for error in refused:
        assert str(error).startswith("own.yaml:") or "expected at least 1 entry" in str(error), error


def test_one_line_removes_shampoo_from_continual(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("extends: continual\nname: without-shampoo\noptimizers: {shampoo: null}\n")
    assert main(["run", "own.yaml", "--dry-run"]) == 0
    found = capsys.readouterr().out
    assert "shampoo/" not in found
    assert "warning: own.yaml:3:14: optimizers.shampoo: null also removes its uses in experiments.permuted" in found
