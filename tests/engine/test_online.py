"""Accuracy on every batch before its update, and the state at the start of a task, agree with a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from optbench.data import Dataset, InputSpec
from optbench.engine import Workspace
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.before_task import before_task, probe
from optbench.engine.evaluate import Evaluator
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.chosen import TRIED, Choice, ChosenGradients
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.mlp import MlpGradients
from optbench.engine.gradients.mlp_together import MlpTogether
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.hits import Hits
from optbench.engine.members import TrialResult
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.metrics.plasticity import plasticity_kept
from optbench.models import build, initialise, materialised
from optbench.store.tables import OnlineRow
from optbench.streams import generator
from optbench.suite import Suite
from optbench.tasks import Examples
from tests import own_models
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.engine.test_own_models import Use, use  # noqa: F401  # a fixture

CPU = torch.device("cpu")
TASKS = {"kind": "permuted", "count": 3, "examples_per_task": 160}
ONLINE = {"score": "current", "early_stopping": None, "max_epochs": 2, "batch_size": 16, "evaluate_every": 0.3}


def online_suite(optimizers: dict[str, dict[str, Any]], **wanted: Any) -> Suite:
    return small_suite(optimizers, **{"tasks": TASKS, "metrics": ["online_accuracy"], **ONLINE, **wanted})


def rows(result: TrialResult) -> list[OnlineRow]:
    return [row for row in result.rows if isinstance(row, OnlineRow)]


@pytest.mark.parametrize("model", [{"kind": "mlp", "hidden": [20, 20]}, {"kind": "mlp", "normalisation": "layer"}])
def test_rows_equal_those_of_a_plain_loop(mnist: Dataset, one_thread: None, model: dict[str, Any]) -> None:
    suite = online_suite({"sgd": {"target": "sgd", "lr": 0.1, "momentum": 0.5}}, model=model, seeds=2)
    for result in train_suite(suite, mnist):
        experiment, seed = suite.experiments["small"], result.trial.seed
        workspace = Workspace.of(experiment, mnist, suite.seed, CPU)
        blueprint, sequence = workspace.blueprint("small", "net"), workspace.family.sequence(seed)
        normalise = Normaliser.of(mnist, experiment.protocol, CPU)
        network = materialised(blueprint.network, CPU)
        blueprint.layout.copy_to(network, blueprint.layout.pack(blueprint.start(suite.seed, seed)))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5)
        for task, found in enumerate(rows(result)):
            row = blueprint.layout.pack({name: p.detach() for name, p in network.named_parameters()})
            examples = sequence.train(task)
            state = before_task(Evaluator(blueprint, normalise), row, probe(examples, suite.seed))
            stream = BatchStream(examples, 16, suite.seed, seed, task)
            losses, right = [], 0
            for step in range(20):
                batch = examples.select(stream.indices(step))
                logits = network(normalise(batch.inputs))
                right += int((logits.argmax(1) == batch.targets).sum())
                loss = nn.functional.cross_entropy(logits, batch.targets)
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            assert (found.task, found.steps, found.note) == (task + 1, 20, state.note)
            assert found.online_accuracy == pytest.approx(right / 320, abs=1.01 / 320)
            assert found.online_loss == pytest.approx(sum(losses) / 20, rel=1e-5)
            # Weights differ in rounding, so one of 20 or more units may be dead in only one of the two networks.
            for name, tolerance in {"dead": 0.051, "dormant": 0.051, "effective_rank": 0.01}.items():
                assert getattr(found, name) == pytest.approx(getattr(state, name), abs=tolerance)
            for name in ("weight_magnitude", "gradient_norm"):
                assert getattr(found, name) == pytest.approx(getattr(state, name), rel=1e-4)
            assert (found.examples, found.width) == (state.examples, state.width)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_all_ways_to_compute_gradients_see_the_same_predictions(
    mnist: Dataset, one_thread: None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Force `torch.func`, whose bits equal those of single members only on some machines.
    monkeypatch.setattr("optbench.engine.gradients.chosen.same_bits", lambda a, b: True)
    model = {"kind": "mlp", "hidden": [30]} if kind == "mlp" else {"kind": "cnn"}
    experiment = small_suite({"sgd": {"target": "sgd"}}, model=model).experiments["small"]
    network = build(experiment.models["net"], InputSpec((1, 28, 28)), 10)
    layout = Layout.of({name: p.shape for name, p in network.named_parameters()})
    normalise = Normaliser.of(mnist, experiment.protocol, CPU)
    buffer = BatchBuffer(25, normalise)
    examples = Examples(mnist.train.inputs[:200], mnist.train.targets[:200])
    streams = [BatchStream(examples, 25, 0, seed, 0) for seed in (0, 1, 0)]
    weights = torch.stack([layout.pack(initialise(network, generator(0, i, "w"))) for i in range(3)])

    def bound() -> Bound:
        return Bound(weights, torch.zeros_like(weights), streams, hits=Hits(streams))

    ways = [(b := bound(), LoopGradients(network, layout, buffer, b))]
    if kind == "mlp":
        ways.append((b := bound(), MlpGradients(network, layout, buffer, b)))
        ways.append((b := bound(), TogetherGradients(MlpTogether(network, layout, b), b, normalise, Recordings(None))))
    ways.append((b := bound(), TogetherGradients(Vmap(network, layout, b), b, normalise, Recordings(None))))
    choice = Choice(sizes={3})
    ways.append((b := bound(), ChosenGradients(network, layout, buffer, b, choice)))
    losses = torch.zeros(3)
    for step in range(TRIED + 2):
        expected = []
        for row, stream in zip(weights, streams, strict=True):
            batch = examples.select(stream.indices(step))
            logits = functional_call(network, layout.views(row), (normalise(batch.inputs),))
            expected.append((logits.argmax(1) == batch.targets).double().mean().item())
        for each, way in ways:
            way(step, losses)
            assert each.hits is not None
            assert each.hits.shares().tolist() == pytest.approx(expected, abs=1e-6)


LANES: dict[str, dict[str, Any]] = {
    "adam": {"target": "adam", "lr": 0.001},
    "shampoo": {"target": "shampoo", "lr": 0.1},
    "sam": {"target": "sam", "base": {"target": "sgd", "lr": 0.05}},
    "lbfgs": {"target": "torch.optim:LBFGS", "lr": 0.1, "max_iter": 2},
    "fresh": {"target": "fresh-network", "base": {"target": "adam", "lr": 0.001}},
}


def test_rows_of_a_trial_alone_equal_those_among_others_in_every_lane(coarse_mnist: Dataset, one_thread: None) -> None:
    suite = online_suite({**LANES, "bad": {"target": "sgd", "lr": 1e5}}, seeds=2)
    together = train_suite(suite, coarse_mnist)
    assert {trial_row(result).status for result in together} == {"ok", "diverged"}
    for i, result in enumerate(together):
        assert same_bits(result, train_suite(suite, coarse_mnist, only=i)[0])
        assert sum(row.steps for row in rows(result)) == trial_row(result).steps
        if trial_row(result).status == "ok":
            assert [row.task for row in rows(result)] == [1, 2, 3]
            assert all(row.online_accuracy is not None and row.steps == 20 for row in rows(result))
        else:
            *_, last = rows(result)
            assert (last.online_accuracy, last.online_loss) == (None, None)
            assert "diverged in this task" in (last.note or "")


def test_recording_online_accuracy_does_not_affect_other_rows(coarse_mnist: Dataset, one_thread: None) -> None:
    without, recorded = (
        train_suite(online_suite(LANES, seeds=1, metrics=metrics), coarse_mnist)
        for metrics in (["hoyer"], ["hoyer", "online_accuracy"])
    )
    for a, b in zip(without, recorded, strict=True):
        assert rows(a) == []
        kept = tuple(row for row in b.rows if not isinstance(row, OnlineRow))
        assert same_bits(a, TrialResult(b.trial, kept, b.weights))


SGD = {"target": "sgd", "lr": 0.1}


def test_rows_show_networks_that_stop_moving_or_start_afresh(mnist: Dataset, one_thread: None) -> None:
    """At learning rate 0 nothing changes between tasks; fresh networks start every task with newly drawn weights."""
    optimizers = {
        "still": {"target": "sgd", "lr": 0.0},
        "fresh": {"target": "fresh-network", "base": SGD},
        "sgd": SGD,
        "stuck": {"target": "switch", "first": SGD, "then": {"target": "sgd", "lr": 0.0}, "at": 20},
    }
    found = {r.trial.optimizer: rows(r) for r in train_suite(online_suite(optimizers, seeds=1), mnist)}
    assert len({row.weight_magnitude for row in found["still"]}) == 1
    assert all(row.online_accuracy is not None and row.online_accuracy < 0.3 for row in found["still"])
    drawn = [row.weight_magnitude for row in found["fresh"]]
    assert len(set(drawn)) == 3
    assert max(drawn) == pytest.approx(min(drawn), rel=0.02)
    grown = [row.weight_magnitude for row in found["sgd"]]
    assert grown[2] > grown[1] > grown[0] == drawn[0]
    kept = {
        name: float(plasticity_kept(np.array([row.online_accuracy for row in learnt], np.float64)))
        for name, learnt in found.items()
    }
    assert kept["fresh"] > 0.85
    assert kept["stuck"] < 0.5, "it learnt in the first task of 20 steps and not later"
    assert found["stuck"][0] == found["sgd"][0]


def test_users_models_are_recorded_and_tokens_count_by_position(
    use: Use,  # noqa: F811
    mnist: Dataset,
    one_thread: None,
) -> None:
    use(own_models.ResNet)
    suite = online_suite({"sgd": {"target": "sgd", "lr": 0.1}}, seeds=2)
    assert all(len(rows(result)) == 3 for result in train_suite(suite, mnist))
    targets = torch.tensor([[0, 1, 2], [2, 1, 0]])
    examples = Examples(targets, targets)
    hits = Hits([BatchStream(examples, 2, 0, 0, 0)] * 2)
    logits = nn.functional.one_hot(torch.tensor([[0, 1, 1], [2, 1, 0]]), 3).double()
    hits.see(0, logits, targets)
    hits.see(1, logits.roll(1, -1), targets)
    assert hits.shares().tolist() == pytest.approx([5 / 6, 1 / 6])
    hits.see_all(torch.stack([logits, logits]), torch.stack([targets, targets.flip(0)]))
    assert hits.shares().tolist() == pytest.approx([5 / 6, 2 / 6])
