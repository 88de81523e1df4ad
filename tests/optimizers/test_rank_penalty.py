"""Training with `rank-penalty`: the base is unchanged, rank follows the strength, and the control keeps the rank."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.errors import OptimizerError
from optbench.optimizers.make import maker
from optbench.optimizers.rank_penalty import RankPenalty
from optbench.optimizers.registry import check_settings, complete, find
from optbench.plan import cohorts, trials
from optbench.store.tables import MetricRow
from optbench.suite import dump_suite
from tests import own_models
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.engine.test_interim import cut_and_whole
from tests.engine.test_own_models import Use, use  # noqa: F401  # a fixture
from tests.optimizers.over_bases import BASES, SGD, SHORT, distance_from_plain_loops, needed
from tests.refusals import refusal


def penalised(base: dict[str, Any], strength: Any, **settings: Any) -> dict[str, Any]:
    return {"target": "rank-penalty", "base": base, "strength": strength, **settings}


@pytest.mark.parametrize(("base", "rotated"), [*((name, False) for name in BASES), ("sgd", True), ("sam", True)])
def test_strength_0_equals_the_base_and_a_trial_alone_equals_one_among_others(
    base: str, rotated: bool, mnist: Dataset
) -> None:
    needed(base)
    optimizers = {"plain": BASES[base], "it": penalised(BASES[base], [-0.1, 0.0, 0.3], rotated=rotated)}
    seeds = 1 if base == "shampoo" else 2  # a root of the 784 pixels would take long
    suite = small_suite(optimizers, seeds=seeds, **SHORT)
    sizes = [len(cohort.trials) for cohort in cohorts(trials(suite))]
    assert sizes == [seeds, 3 * seeds], "all strengths train in one cohort"
    results = train_suite(suite, mnist)
    plain, it = results[:seeds], results[seeds:]
    assert all(trial_row(result).status == "ok" for result in results)
    by_strength = {s: [r for r in it if r.trial.hyperparameters["strength"] == s] for s in (-0.1, 0.0, 0.3)}
    for a, b in zip(plain, by_strength[0.0], strict=True):
        assert a.weights is not None
        assert b.weights is not None
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
        assert trial_row(a).optimizer_state_bytes == trial_row(b).optimizer_state_bytes
    assert not any(
        torch.equal(a.weights["layers.0.weight"], b.weights["layers.0.weight"])
        for strength in (-0.1, 0.3)
        for a, b in zip(plain, by_strength[strength], strict=True)
        if a.weights is not None and b.weights is not None
    )
    for i in (seeds, 3 * seeds):
        assert same_bits(train_suite(suite, mnist, only=i)[0], results[i])


def ranks(results: list[TrialResult], strength: float) -> list[float]:
    return [
        next(row.value for row in result.rows if isinstance(row, MetricRow) and row.metric == "effective_rank")
        for result in results
        if result.trial.hyperparameters["strength"] == strength
    ]


def test_rank_follows_the_strength_and_the_rotated_control_keeps_it(mnist: Dataset) -> None:
    strengths = [-0.1, 0.0, 0.03, 0.1]
    optimizers = {"it": penalised(SGD, strengths), "control": penalised(SGD, [-0.1, 0.1], rotated=True)}
    task = {"kind": "permuted", "count": 1}
    suite = small_suite(
        optimizers, tasks=task, seeds=4, metrics=["effective_rank"], max_epochs=6, evaluate_every=6, early_stopping=None
    )
    results = train_suite(suite, mnist)
    it, control = ([r for r in results if r.trial.optimizer == name] for name in optimizers)
    for i in range(4):
        found = [ranks(it, strength)[i] for strength in strengths]
        assert found == sorted(found, reverse=True), found
    plain = ranks(it, 0.0)
    spread = max(plain) - min(plain)
    for strength in (-0.1, 0.1):
        moved = statistics.mean(ranks(it, strength)) - statistics.mean(plain)
        turned = statistics.mean(ranks(control, strength)) - statistics.mean(plain)
        assert abs(turned) < spread < abs(moved), (turned, spread, moved)


@pytest.mark.parametrize("base", ["adamw", "shampoo", "soap"])
def test_training_resumes_as_if_uninterrupted(base: str, mnist: Dataset) -> None:
    needed(base)
    suite = small_suite({"it": penalised(BASES[base], [0.0, 0.1], rotated=base == "adamw")}, seeds=1, **SHORT)
    for _, whole, again in cut_and_whole(suite, mnist):
        assert all(map(same_bits, whole, again))


@pytest.mark.parametrize("model", [own_models.ResNet, own_models.VisionTransformer])
def test_users_models_are_penalised(model: type[nn.Module], mnist: Dataset, use: Use) -> None:  # noqa: F811
    use(model)
    optimizers = {"plain": SGD, "it": penalised(SGD, [0.0, 0.3])}
    suite = small_suite(optimizers, seeds=2, **{**SHORT, "batch_size": 6})  # fewer examples than features
    results = train_suite(suite, mnist)
    weights = [result.weights for result in results]
    assert all(trial_row(result).status == "ok" for result in results)
    for i in range(2):
        assert all(torch.equal(weights[i][name], weights[2 + i][name]) for name in weights[i])
        assert not all(torch.equal(weights[i][name], weights[4 + i][name]) for name in weights[i])
    assert same_bits(train_suite(suite, mnist, only=5)[0], results[5])


@pytest.mark.parametrize("strength", [0.3, -0.3])
def test_the_engine_agrees_with_the_class_in_a_plain_loop(strength: float, mnist: Dataset) -> None:
    suite = small_suite({"it": penalised(SGD, strength)}, seeds=[4, 9], **SHORT)
    settings = dict(suite.optimizers["it"].hyperparameters)

    def make(network: nn.Module, seed: int) -> torch.optim.Optimizer:
        given = {"model": network, "generator": torch.Generator()}
        return maker(find("rank-penalty"), complete("rank-penalty", settings), given)(list(network.parameters()))

    assert distance_from_plain_loops(suite, mnist, make) < 1e-3


@pytest.mark.parametrize("strength", [0.1, 0])
@pytest.mark.parametrize("more", [["--dry-run"], ["--device", "cpu", "--jobs", "1"]], ids=["dry run", "run"])
def test_a_network_without_hidden_layers_is_refused_before_training(
    more: list[str], strength: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = small_suite({"it": penalised(SGD, strength)}, model={"kind": "mlp", "hidden": []}, seeds=7, **SHORT)
    (tmp_path / "suite.yaml").write_text(dump_suite(suite))
    said = refusal(capsys, tmp_path, "run", tmp_path / "suite.yaml", "--runs-dir", tmp_path / "runs", *more)
    place = f"{tmp_path}/suite.yaml:30:15: experiments.small.models.net"
    assert said == f"{place}: rank-penalty: expected a model with hidden layers, got one without"


def test_a_users_model_without_weights_below_the_features_fails(mnist: Dataset, use: Use) -> None:  # noqa: F811
    use(own_models.Flat)
    (result,) = train_suite(small_suite({"it": penalised(SGD, 0.1)}, seeds=1, **SHORT), mnist)
    assert trial_row(result).error_message == (
        "rank-penalty: expected the features of Flat to depend on its weights, got features that do not"
    )


def test_invalid_nesting_is_refused() -> None:
    check_settings("rank-penalty", {"base": {"target": "sam"}, "strength": -1e3})
    inside = {"target": "rank-penalty", "base": SGD}
    with pytest.raises(OptimizerError, match="sam cannot wrap rank-penalty; expected rank-penalty outermost"):
        check_settings("sam", {"base": inside})
    with pytest.raises(
        OptimizerError, match="'base': expected rank-penalty only once, got it inside another rank-penalty"
    ):
        check_settings("rank-penalty", {"base": inside})
    with pytest.raises(OptimizerError, match="'strength' of rank-penalty: expected a number, got 'much'"):
        check_settings("rank-penalty", {"strength": "much"})
    with pytest.raises(OptimizerError, match=r"expected a model with an nn\.Linear"):
        RankPenalty(nn.Conv2d(1, 1, 1), SGD)
