"""The shipped suites are valid, and what they say of their tuning is true."""

from __future__ import annotations

import pytest

from optbench.metrics import select
from optbench.optimizers.registry import check_settings
from optbench.plan import trials
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
