"""The shipped suites are valid, and what they say of their tuning is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli import main
from optbench.metrics import select
from optbench.optimizers.registry import check_settings
from optbench.plan import trials
from optbench.store import read_run
from optbench.suite import Suite, load_suite, shipped_suites

TUNED = {"continual": "continual-tuning", "shampoo": "shampoo-tuning"}


def shipped(name: str) -> Suite:
    path = shipped_suites()[name]
    return load_suite(path, check_optimizer=check_settings, check_metric=lambda metric: select([metric]))


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_every_shipped_suite_loads_and_names_itself(name: str) -> None:
    suite = shipped(name)
    assert suite.name == name
    assert suite.description
    assert trials(suite)


@pytest.mark.parametrize(("name", "tuning"), TUNED.items())
def test_tuned_rates_come_from_the_sweep_on_other_seeds(name: str, tuning: str) -> None:
    final, sweep = shipped(name), shipped(tuning)
    assert (final.stage, sweep.stage) == ("eval", "tune")
    assert not set(final.seeds) & set(sweep.seeds)
    swept: dict[tuple[str, str], set[float]] = {}
    for trial in trials(sweep):
        swept.setdefault((trial.experiment, trial.optimizer), set()).add(trial.hyperparameters["lr"])
    assert len({len(rates) for rates in swept.values()}) == 1, "the same number of settings for every optimizer"
    for trial in trials(final):
        if trial.variant == "default":  # a sweep in the final suite is shown whole, not tuned
            assert trial.hyperparameters["lr"] in swept[trial.experiment, trial.optimizer], trial.id
    for name, experiment_ in final.experiments.items():
        assert experiment_.tuning is not None
        for optimizer, cost in experiment_.tuning.items():
            assert cost.seeds == len(sweep.seeds)
            assert cost.settings >= len(swept[name, optimizer]), "an earlier, coarser sweep may have come before"
        assert len(set(experiment_.tuning.values())) == 1, "the same budget for everyone"
    for experiment in final.experiments:
        assert final.experiments[experiment].protocol == sweep.experiments[experiment].protocol
        assert final.experiments[experiment].tasks == sweep.experiments[experiment].tasks


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
