"""Controls that leave the steps to their base: l2-init, shrink-and-perturb, fresh-network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.errors import OptimizerError
from optbench.models import build, initialise
from optbench.optimizers.l2_init import L2Init
from optbench.optimizers.registry import check_settings
from optbench.optimizers.renewal import FreshNetwork, ShrinkAndPerturb
from optbench.plan import cohorts, trials
from optbench.store.tables import MetricRow
from optbench.streams import generator
from tests import own_models
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.engine.test_interim import cut_and_whole
from tests.engine.test_own_models import Use, use  # noqa: F401  # a fixture
from tests.optimizers.over_bases import BASES, SGD, SHORT, distance_from_plain_loops, needed, weights_of

NEUTRAL: dict[str, dict[str, Any]] = {
    "l2-init": {"strength": 0.0},
    "shrink-and-perturb": {"shrink": 1.0, "perturb": 0.0},
}
AT_WORK: dict[str, dict[str, Any]] = {
    "l2-init": {"strength": 0.1},
    "shrink-and-perturb": {"shrink": 0.5, "perturb": 0.2},
    "fresh-network": {},
}


def over(name: str, base: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"target": name, "base": base, **settings}


def same_weights(a: TrialResult, b: TrialResult) -> bool:
    return all(torch.equal(weight, weights_of(b)[name]) for name, weight in weights_of(a).items())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_equal_the_base_and_a_trial_alone_equals_one_among_others(
    name: str, base: str, mnist: Dataset
) -> None:
    needed(base)
    sweep = [{**NEUTRAL[name]}, {**AT_WORK[name]}]
    optimizers = {"plain": BASES[base], "it": {"target": name, "base": BASES[base], "variants": sweep}}
    suite = small_suite(optimizers, seeds=1, **SHORT)
    assert [len(cohort.trials) for cohort in cohorts(trials(suite))] == [1, 2], "both settings train in one cohort"
    plain, neutral, at_work = results = train_suite(suite, mnist)
    assert same_weights(plain, neutral)
    assert not same_weights(plain, at_work)
    for i in (1, 2):
        assert same_bits(train_suite(suite, mnist, only=i)[0], results[i])


@pytest.mark.parametrize("base", ["adamw", "shampoo", "soap"])
@pytest.mark.parametrize("name", AT_WORK)
def test_training_resumes_as_if_uninterrupted(name: str, base: str, mnist: Dataset) -> None:
    needed(base)
    suite = small_suite({"it": over(name, BASES[base], **AT_WORK[name])}, seeds=1, **SHORT)
    for _, whole, again in cut_and_whole(suite, mnist):
        assert all(map(same_bits, whole, again))


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_the_engine_agrees_with_l2_init_in_a_plain_loop(base: str, mnist: Dataset) -> None:
    suite = small_suite({"it": over("l2-init", BASES[base], strength=0.1)}, seeds=[4, 9], **SHORT)
    assert (
        distance_from_plain_loops(suite, mnist, lambda network, _: L2Init(network.parameters(), BASES[base], 0.1))
        < 1e-3
    )


@pytest.mark.parametrize("name", ["shrink-and-perturb", "fresh-network"])
def test_the_engine_agrees_with_renewal_in_a_plain_loop(name: str, mnist: Dataset) -> None:
    suite = small_suite({"it": over(name, BASES["adamw"], **AT_WORK[name])}, seeds=[4, 9], **SHORT)
    kind = FreshNetwork if name == "fresh-network" else ShrinkAndPerturb

    def make(network: nn.Module, seed: int) -> torch.optim.Optimizer:
        made = kind(network, BASES["adamw"], **AT_WORK[name])

        def fresh() -> nn.Module:
            """Draw a new network with the model's initialisation, from the engine's stream for this task."""
            other = build(suite.experiments["small"].models["net"], mnist.inputs, mnist.classes)
            weights = initialise(other, generator(suite.seed, seed, f"initial weights/task {made.tasks - 1}"))
            other = other.to_empty(device="cpu")
            other.load_state_dict(weights)
            return other

        made._fresh = fresh  # type: ignore[method-assign]
        return made

    assert distance_from_plain_loops(suite, mnist, make) < 1e-3


def test_a_fresh_network_does_not_depend_on_earlier_tasks(mnist: Dataset) -> None:
    """Its final weights do not depend on the first task, unlike those of a plain network."""
    fresh = {"target": "fresh-network", "base": BASES["adamw"]}
    tasks = [{"kind": "rotated", "angles": [angle, 90.0]} for angle in (0.0, 45.0)]
    ends = [train_suite(small_suite({"it": fresh}, tasks=each, seeds=2, **SHORT), mnist) for each in tasks]
    assert all(same_weights(a, b) for a, b in zip(*ends, strict=True))
    kept = [train_suite(small_suite({"it": BASES["adamw"]}, tasks=each, seeds=1, **SHORT), mnist) for each in tasks]
    assert not same_weights(kept[0][0], kept[1][0])


def test_a_fresh_network_equals_full_perturbation_with_a_state_reset(mnist: Dataset) -> None:
    optimizers = {
        "fresh": over("fresh-network", BASES["adamw"]),
        "mixed": over("shrink-and-perturb", BASES["adamw"], shrink=0.0, perturb=1.0),
    }
    kept = train_suite(small_suite(optimizers, seeds=1, **SHORT), mnist)
    assert not same_weights(*kept), "shrink-and-perturb keeps the optimizer state"
    fresh, mixed = train_suite(small_suite(optimizers, seeds=1, optimizer_state="reset", **SHORT), mnist)
    assert same_weights(fresh, mixed)
    assert same_weights(fresh, kept[0])


def test_l2_init_and_distances_refer_to_the_start_of_the_fresh_network(mnist: Dataset) -> None:
    """Under a very strong pull, weights stay at the start of the last task, not of the first."""
    base = {"target": "sgd", "lr": 1e-3}
    settings = {"lasting": over("l2-init", base, strength=400.0)}
    settings["fresh"] = over("l2-init", over("fresh-network", base), strength=400.0)
    metrics = ["relative_distance_from_init"]
    suite = small_suite(settings, seeds=1, tasks={"kind": "permuted", "count": 2}, metrics=metrics, **SHORT)
    network = build(suite.experiments["small"].models["net"], mnist.inputs, mnist.classes)
    streams = ("initial weights", "initial weights/task 1")
    for result, stream in zip(train_suite(suite, mnist), streams, strict=True):
        start = initialise(network, generator(suite.seed, result.trial.seed, stream))
        assert all((weights_of(result)[name] - weight).norm() < 0.05 * weight.norm() for name, weight in start.items())
        (distance,) = [row.value for row in result.rows if isinstance(row, MetricRow) and row.metric == metrics[0]]
        assert distance is not None
        assert 0 < distance < 0.05


@pytest.mark.parametrize("name", AT_WORK)
def test_controls_work_with_users_models_that_have_buffers(name: str, mnist: Dataset, use: Use) -> None:  # noqa: F811
    use(own_models.ResNet)
    suite = small_suite({"it": over(name, SGD, **AT_WORK[name])}, seeds=2, **SHORT)
    results = train_suite(suite, mnist)
    assert same_bits(train_suite(suite, mnist, only=1)[0], results[1])
    assert not same_weights(*results)


def test_a_diverging_member_does_not_affect_others(mnist: Dataset) -> None:
    settings = {"target": "l2-init", "base": {"target": "sgd", "lr": 0.1}, "strength": [0.0, 0.1, 1e30]}
    suite = small_suite({"it": settings}, seeds=1, **SHORT)
    results = train_suite(suite, mnist)
    assert [trial_row(result).status for result in results] == ["ok", "ok", "diverged"]
    for i in (0, 1):
        assert same_bits(train_suite(suite, mnist, only=i)[0], results[i])


def test_controls_can_be_nested_in_any_order_but_only_once(mnist: Dataset) -> None:
    both = [over("l2-init", over("shrink-and-perturb", SGD)), over("shrink-and-perturb", over("l2-init", SGD))]
    a, b = train_suite(small_suite({"a": both[0], "b": both[1]}, seeds=1, **SHORT), mnist)
    assert same_weights(a, b)
    with pytest.raises(OptimizerError, match="'base': expected l2-init only once, got it inside another l2-init"):
        check_settings("l2-init", {"base": {"target": "shrink-and-perturb", "base": {"target": "l2-init"}}})
    with pytest.raises(OptimizerError, match="sam cannot wrap l2-init; expected l2-init outermost, with sam ins"):
        check_settings("sam", {"base": {"target": "l2-init"}})
    with pytest.raises(OptimizerError, match="'shrink' of shrink-and-perturb: expected a number of at least 0 and at "):
        check_settings("shrink-and-perturb", {"shrink": 1.5})


def test_renewal_in_a_plain_loop_uses_its_generator_and_keeps_or_resets_the_state() -> None:
    def trained(kind: type[ShrinkAndPerturb], seed: int) -> tuple[nn.Linear, ShrinkAndPerturb]:
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        optimizer = kind(network, {"target": "adam"}, generator=torch.Generator().manual_seed(seed))
        optimizer.begin_task()
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        before = network.weight.detach().clone()
        optimizer.begin_task()
        if kind is ShrinkAndPerturb:
            assert ((network.weight - 0.4 * before).abs() <= 0.1 / 3**0.5).all(), "PyTorch draws within 1/sqrt(fan-in)"
        assert bool(optimizer.state) == (kind is ShrinkAndPerturb)
        return network, optimizer

    for kind in (ShrinkAndPerturb, FreshNetwork):
        (a, _), (b, _), (c, _) = (trained(kind, seed) for seed in (1, 1, 2))
        assert torch.equal(a.weight, b.weight)
        assert not torch.equal(a.weight, c.weight)


def test_a_module_that_cannot_be_reinitialised_is_refused_in_a_plain_loop() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    with pytest.raises(
        OptimizerError, match=r"fresh-network outside of a run: expected Scaled to have reset_parameters\(\)"
    ):
        FreshNetwork(Scaled(), {"target": "sgd"})


def test_l2_init_restores_its_start_and_does_not_change_gradients() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = L2Init([weight], {"target": "sgd", "lr": 0.5}, 0.25)
    weight.data += 4.0
    weight.grad = torch.ones(2)
    other = L2Init([weight], {"target": "sgd", "lr": 0.5}, 0.25)
    other.load_state_dict(optimizer.state_dict())
    other.step()
    assert weight.grad.tolist() == [1.0, 1.0]
    assert weight.tolist() == [5.0 - 0.5 * (1 + 2 * 0.25 * 4), 6.0 - 0.5 * (1 + 2 * 0.25 * 4)]
