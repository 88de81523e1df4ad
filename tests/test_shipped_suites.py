"""The shipped suites are valid, and what they say of their tuning is true."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from optbench.cli import main
from optbench.metrics import select
from optbench.optimizers.registry import check_settings
from optbench.plan import trials
from optbench.store import read_run
from optbench.suite import Suite, load_suite, shipped_suites
from optbench.tuning.space import effective, searches
from optbench.tuning.tuned_file import MARKER

TUNED = ("basins", "continual", "shampoo", "sparsity")


def shipped(name: str) -> Suite:
    path = shipped_suites()[name]
    return load_suite(path, check_optimizer=check_settings, check_metric=lambda metric: select([metric]))


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_every_shipped_suite_loads_and_names_itself(name: str) -> None:
    suite = shipped(name)
    assert suite.name == name
    assert suite.description
    assert trials(suite)


@pytest.mark.parametrize("name", TUNED)
def test_what_a_suite_says_of_its_tuning_is_true(name: str) -> None:
    suite = shipped(name)
    assert suite.tune is not None
    assert suite.tune.seeds is not None
    assert not set(suite.seeds) & set(suite.tune.seeds)
    found = searches(suite)
    searched = {(search.experiment, search.optimizer): search for search in found.searches}
    tied = {(tie.experiment, tie.optimizer): tie for tie in found.ties}
    for experiment, settings in suite.experiments.items():
        assert settings.tuning is not None
        budgets = set()
        for optimizer, cost in settings.tuning.items():
            if (experiment, optimizer) in tied:
                continue
            budgets.add((cost.settings, cost.seeds))
            search = searched[experiment, optimizer]
            for dimension in search.dimensions:
                used = value_at(effective(suite, experiment, optimizer), dimension.path)
                if cost.chosen is not None:
                    assert cost.chosen[dimension.name] == used
                assert used in dimension.values or cost.settings > len(search.grid), "on the grid, or it was widened"
        assert len(budgets) == 1, "the same budget for everyone"
        assert {o for e, o in searched if e == experiment} <= settings.tuning.keys()
    for (experiment, optimizer), tie in tied.items():
        leader = value_at(effective(suite, experiment, tie.of), tie.of_path)
        assert value_at(effective(suite, experiment, optimizer), tie.path) == pytest.approx(tie.times * leader)


@pytest.mark.parametrize("name", ["continual", "sparsity", "basins"])
def test_a_tuned_suite_names_the_command_that_chose_its_values(name: str) -> None:
    first, command = shipped_suites()[name].read_text().splitlines()[:2]
    assert first == MARKER
    assert command.startswith(f"#   optbench tune {name}")


def value_at(hyperparameters: dict[str, Any], path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path, hyperparameters)


def test_continual_is_the_papers_section_3_1() -> None:
    suite = shipped("continual")
    assert len(suite.seeds) == 10
    assert set(suite.experiments["permuted-mnist"].models) == {"mlp-50", "mlp-100", "mlp-200"}
    assert suite.optimizers["shampoo"].hyperparameters["preset"] == "gupta"
    claims = suite.claims.values()
    assert {claim.metric for claim in claims} == {
        "average_accuracy",
        "forgetting",
        "effective_rank",
        "earlier_tasks_accuracy",
        "class_cosine_mean",
    }
    assert all(claim.text and claim.source.startswith("arXiv:2507.12224") for claim in claims)
    smoke = shipped("smoke")
    assert smoke.experiments.keys() == suite.experiments.keys()
    assert smoke.optimizers.keys() <= suite.optimizers.keys()


# What makes the big suites small: nothing but steps, tasks and examples.
SMALL = {
    "sparsity": ["experiments.lenet.protocol.max_steps=4", "experiments.lenet.protocol.test_examples=200"],
    "basins": [
        "experiments.permuted-mnist.tasks.count=2",
        "experiments.permuted-mnist.protocol.max_steps=4",
        "experiments.permuted-mnist.protocol.test_examples=200",
    ],
}


@pytest.mark.parametrize("name", SMALL)
def test_the_big_suites_run_through_in_small(name: str, tmp_path: Path) -> None:
    words = [word for override in SMALL[name] for word in ("--set", override)]
    path = ["--runs-dir", str(tmp_path), "--name", name]
    assert main(["run", name, "--seeds", "1", "--device", "cpu", *path, *words]) == 0
    run = read_run(tmp_path / name)
    assert set(run.table("trials")["status"].to_pylist()) == {"ok"}
    report = tmp_path / "report.md"
    assert main(["report", str(tmp_path / name), "--format", "markdown", "-o", str(report)]) == 0
    text = report.read_text()
    titles = {"sparsity": ["weights kept", "Twins"], "basins": ["Switching optimizers", "One solution against another"]}
    for title in titles[name]:
        assert title in text
    if name == "basins":
        switched = {trial.optimizer for trial in trials(load_suite(tmp_path / name / "suite.yaml"))}
        values = [value for value in run.pairs["value"].to_pylist() if value is not None]
        assert len(switched) == 13
        assert len(values) == run.pairs.num_rows, "every pair has a value"
