"""The lock-step engine agrees with its slow twin, and a trial never depends on its companions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from optbench.data import Dataset, InputSpec
from optbench.engine import TrialResult, Workspace, stack
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.evaluate import Evaluator
from optbench.engine.gradients import Bound
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.mlp import MlpGradients
from optbench.engine.gradients.mlp_together import MlpTogether
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.errors import UsageError
from optbench.models import Network, build, initialise
from optbench.optimizers.make import maker
from optbench.optimizers.registry import OPTIMIZERS, find
from optbench.plan import cohorts, trials
from optbench.store.tables import AccuracyRow, CurveRow, MetricRow, SimilarityRow, SpectrumRow
from optbench.streams import generator
from optbench.suite import Suite
from optbench.suite.protocol import Protocol
from optbench.suite.schema import ModelSettings
from optbench.tasks import Examples
from tests.conftest import PAIRS, PERMUTED, same_bits, small_suite, train_suite, trial_row
from tests.twin import train_twin

# Learning rates at which each optimizer learns within the few steps of the small suite.
RATES = {
    "sgd": 0.1,
    "sgdw": 0.1,
    "adam": 2e-3,
    "adamw": 2e-3,
    "adagrad": 0.02,
    "nadam": 2e-3,
    "radam": 2e-3,
    "adadelta": 1.0,
    "soap": 3e-3,
    "kron": 1e-3,
    "scalable-shampoo": 0.01,
    "rprop": 1e-4,
    "adamax": 5e-3,
    "adabelief": 2e-3,
    "adan": 2e-3,
    "rmsprop": 1e-3,
    "adafactor": 0.01,
    "lion": 5e-4,
    "prodigy": 1.0,
    "ademamix": 2e-3,
    "lamb": 0.01,
    "shampoo": 0.1,
    "power-sgd": 0.1,
    "muon": 0.01,
    "lbfgs": 0.1,
    "schedule-free": 2e-3,
    "adahessian": 0.05,
    "kfac": 0.1,
    "hessian-free": 1.0,
}
# Wrappers around another optimizer, which has the learning rate (tests/optimizers/test_foreign_optimizers.py).
WRAPPERS = {
    "sam",
    "gradient-noise",
    "powerpropagation",
    "l1",
    "rank-penalty",
    "switch",
    "l2-init",
    "shrink-and-perturb",
    "fresh-network",
}
# Optimizers for which no plain loop of `backward()` and `step()` follows the same path as the engine:
WITHOUT_TWIN = {
    "soap": "rounding decides its steps in the null space of the first gradient (tests/optimizers/test_registry.py)",
    "muon": "orthogonalises in bfloat16, which amplifies rounding (tests/optimizers/test_foreign_optimizers.py)",
    "kron": "draws from the global generators, which the engine seeds for each step",
    "scalable-shampoo": "draws from the global generators as well",
    "adahessian": "draws from the global generators as well, and needs a differentiable gradient",
    "rprop": "sign and size of its steps depend on the sign of every gradient, and so on rounding",
    "lbfgs": "needs a closure; divides by differences of gradients, and so by rounding",
    "hessian-free": "needs a closure (tests/engine/test_hessian_free.py compares its step with a dense solve)",
    "schedule-free": "is measured at other weights than it trains (tests/optimizers/test_foreign_optimizers.py)",
}
# No learning rate makes these diverge: a step of Rprop is at most 50, K-FAC clips its steps, and Hessian-free rejects a
# step that increases the loss of its batch.
BOUNDED = {"rprop", "kfac", "hessian-free"}
MOMENTUM: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "sgdw": {"momentum": 0.9, "weight_decay": 0.1},
}
# Far beyond any useful learning rate, but ten times this value, as after bias correction, still fits in float32.
ABSURD = 1e30
SEQUENCES = {"permuted": PERMUTED, "pairs": PAIRS}


MORE: dict[str, dict[str, Any]] = {
    "kfac": {"damping": 0.3},  # with less damping, rounding errors grow over 100 steps where inputs hardly vary
    "scalable-shampoo": {"preconditioning_compute_steps": 10},  # its default exceeds the number of steps in these tests
    "adafactor": {"weight_decay": 1e-4},  # its step is bounded at any learning rate, but its decay is not
}


@pytest.fixture(scope="module")
def mnist(coarse_mnist: Dataset) -> Dataset:
    return coarse_mnist


def settings(name: str) -> dict[str, Any]:
    return {"target": name, "lr": RATES[name], **MORE.get(name, {})}


def test_every_registered_optimizer_is_covered_here() -> None:
    assert RATES.keys() | WRAPPERS == OPTIMIZERS.keys()
    assert WITHOUT_TWIN.keys() | BOUNDED <= RATES.keys()


# The tolerance is on the distance between the solutions, relative to the distance that the twin has moved. Optimizers
# that divide by the size of their gradient turn rounding errors into steps, so two lengths have two tolerances.
@pytest.mark.parametrize(("epochs", "tolerance"), [(0.12, 1e-3), (2, 0.2)], ids=["few steps", "two epochs"])
@pytest.mark.parametrize("name", sorted(RATES.keys() - WITHOUT_TWIN.keys()))
def test_engine_agrees_with_plain_pytorch(name: str, epochs: float, tolerance: float, mnist: Dataset) -> None:
    optimizer = {**settings(name), **MOMENTUM.get(name, {})}
    often = min(epochs, 0.5)
    suite = small_suite({"opt": optimizer}, seeds=[4, 9], max_epochs=epochs, evaluate_every=often, metrics=["hoyer"])
    hyperparameters = dict(suite.optimizers["opt"].hyperparameters)
    for result in train_suite(suite, mnist):

        def make(network: Network, seed: int = result.trial.seed) -> torch.optim.Optimizer:
            given = {"model": network, "generator": generator(suite.seed, seed, "optimizer")}
            return maker(find(name), hyperparameters, given)(list(network.parameters()))

        start, weights, matrix = train_twin(suite, mnist, result.trial.seed, make)
        assert result.weights is not None
        for key, weight in weights.items():
            assert (result.weights[key] - weight).norm() < tolerance * (weight - start[key]).norm(), key
        for row in result.rows:
            if isinstance(row, AccuracyRow):
                # One of 200 test examples may differ; in a long run rounding errors accumulate.
                allowed = 0.0051 if epochs < 1 else 0.05
                assert row.accuracy == pytest.approx(matrix[row.after_task][row.task - 1], abs=allowed)


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        *((name, "permuted") for name in RATES),
        # The content of tasks does not depend on the optimizer, so one optimizer of each lane is enough for pairs.
        *(pytest.param(n, "pairs", marks=[] if n in ("adamw", "shampoo", "kron") else pytest.mark.slow) for n in RATES),
    ],
)
def test_a_trial_alone_is_bit_identical_to_the_same_trial_in_a_cohort(name: str, sequence: str, mnist: Dataset) -> None:
    sweep = {**settings(name), "lr": [RATES[name], RATES[name] / 3]}
    # Metrics do not depend on the optimizer either, so all of them are only measured for pairs.
    metrics = ["hoyer", "effective_rank"] if sequence == "permuted" else None
    small: dict[str, Any] = {"train_examples": 480, "max_epochs": 1, "evaluate_every": 0.25, "metrics": metrics}
    suite = small_suite({"opt": sweep}, tasks=SEQUENCES[sequence], seeds=[0, 1, 2], **small)
    assert len(cohorts(trials(suite))) == 1
    together = train_suite(suite, mnist)
    for i in (2, 3):  # the last member of one learning rate and the first of another
        alone = train_suite(suite, mnist, only=i)[0]
        assert same_bits(alone, together[i]), together[i].trial.id


def test_permuting_the_seeds_permutes_the_trials(mnist: Dataset) -> None:
    forward = train_suite(small_suite({"opt": settings("adamw")}, seeds=[0, 1, 2]), mnist)
    backward = train_suite(small_suite({"opt": settings("adamw")}, seeds=[2, 1, 0]), mnist)
    assert all(same_bits(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_training_twice_gives_the_same_bits(mnist: Dataset) -> None:
    suite = small_suite({"opt": settings("adamw")})
    assert all(same_bits(a, b) for a, b in zip(train_suite(suite, mnist), train_suite(suite, mnist), strict=True))


def test_all_optimizers_of_a_seed_start_at_the_same_weights(mnist: Dataset) -> None:
    suite = small_suite({name: settings(name) for name in ("sgd", "adamw", "shampoo")}, max_steps=2)
    hashes: dict[int, set[str]] = {}
    for result in train_suite(suite, mnist):
        hashes.setdefault(result.trial.seed, set()).add(trial_row(result).init_hash)
    assert all(len(found) == 1 for found in hashes.values())
    assert len(set.union(*hashes.values())) == 3


@pytest.mark.parametrize("name", sorted(RATES.keys() - BOUNDED))
def test_a_diverged_member_is_frozen_and_does_not_affect_others(name: str, mnist: Dataset) -> None:
    # The absurd learning rate is in the middle, so that it could affect both neighbours.
    rates = [RATES[name], ABSURD, RATES[name] / 2]
    small: dict[str, Any] = {"seeds": 1, "train_examples": 480, "max_epochs": 1, "metrics": ["hoyer"]}
    results = train_suite(small_suite({"opt": {**settings(name), "lr": rates}}, **small), mnist)
    wild = [result for result in results if result.trial.hyperparameters["lr"] == ABSURD]
    assert len(wild) == 1
    for result in wild:
        row = trial_row(result)
        assert row.status == "diverged"
        assert 1 <= row.last_step == row.steps
        assert result.weights is None
        accuracies = [r for r in result.rows if isinstance(r, AccuracyRow)]
        assert len(accuracies) == 3 * 2, "a diverged trial has all its rows"
        assert [r.accuracy for r in accuracies if r.after_task == 2] == [None, None]
    for result in train_suite(small_suite({"opt": {**settings(name), "lr": rates[::2]}}, **small), mnist):
        twin = next(r for r in results if r.trial.id == result.trial.id)
        assert trial_row(result).status == "ok"
        assert same_bits(result, twin)


def test_early_stopping_works_per_member(mnist: Dataset) -> None:
    suite = small_suite({"opt": {**settings("adamw"), "lr": [0.02, 2e-4]}}, max_epochs=6, seeds=4)
    results = train_suite(suite, mnist)
    steps = {trial_row(result).steps for result in results}
    assert len(steps) > 1, "members stop at different steps"
    for i in (0, 3, 6):
        assert same_bits(train_suite(suite, mnist, only=i)[0], results[i])


def held_out_loss(result: TrialResult, suite: Suite, mnist: Dataset, *, task: int) -> float:
    """Compute the loss of the final weights on a task's validation data again."""
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))
    blueprint = workspace.blueprint("small", result.trial.model)
    normalise = Normaliser.of(mnist, workspace.experiment.protocol, workspace.device)
    assert result.weights is not None
    row = blueprint.layout.pack(result.weights)
    data = workspace.family.sequence(result.trial.seed).validation(task)
    return Evaluator(blueprint, normalise).score([row], [data])[0].loss


def test_best_weights_are_restored_even_if_patience_never_runs_out(mnist: Dataset) -> None:
    # Patience never runs out here, and the learning rate is so large that the held-out loss fluctuates.
    suite = small_suite({"opt": {"target": "sgd", "lr": 3.0}}, tasks={"kind": "permuted", "count": 1}, max_epochs=4,
                        early_stopping={"patience": 1000})  # fmt: skip
    rose = []
    for result in train_suite(suite, mnist):
        curve = [row.eval_loss for row in result.rows if isinstance(row, CurveRow)]
        final = next(row for row in result.rows if isinstance(row, AccuracyRow) and row.after_task == 1)
        losses = [loss for loss in curve if loss is not None]
        assert final.validation_loss == min(losses) == held_out_loss(result, suite, mnist, task=0)
        rose.append(min(losses) < losses[-1])
    assert any(rose)


def test_without_early_stopping_the_last_weights_are_kept(mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": "sgd", "lr": 1.0}}, early_stopping=None, max_epochs=3)
    for result in train_suite(suite, mnist):
        assert trial_row(result).steps == 2 * 3 * (800 // 32)
        last = [row for row in result.rows if isinstance(row, CurveRow)][-1]
        final = [row for row in result.rows if isinstance(row, AccuracyRow)][-1]
        assert final.validation_loss == last.eval_loss == held_out_loss(result, suite, mnist, task=1)


def test_validation_scores_use_validation_data_even_if_stopping_uses_test_data(mnist: Dataset) -> None:
    suite = small_suite({"opt": {"target": "sgd"}}, early_stopping={"on": "test", "patience": 2}, max_epochs=1)
    for result in train_suite(suite, mnist):
        final = [row for row in result.rows if isinstance(row, AccuracyRow)][-1]
        curve = [row.eval_loss for row in result.rows if isinstance(row, CurveRow) and row.task == 2]
        assert final.validation_loss == held_out_loss(result, suite, mnist, task=1)
        assert final.loss in curve


def test_no_steps_after_the_first_task_means_no_forgetting(mnist: Dataset) -> None:
    # At this learning rate updates vanish in rounding, so training runs but no weight changes.
    suite = small_suite({"opt": {"target": "sgd", "lr": 1e-30}})
    for result in train_suite(suite, mnist):
        matrix = {(r.after_task, r.task): r.accuracy for r in result.rows if isinstance(r, AccuracyRow)}
        assert matrix[1, 1] == matrix[2, 1] == matrix[0, 1]


def test_optimizer_state_can_be_reset_between_tasks(mnist: Dataset) -> None:
    keep = train_suite(small_suite({"opt": settings("adamw")}, seeds=1), mnist)[0]
    reset = train_suite(small_suite({"opt": settings("adamw")}, seeds=1, optimizer_state="reset"), mnist)[0]
    first_task = [[r for r in result.rows if isinstance(r, CurveRow) and r.task == 1] for result in (keep, reset)]
    assert first_task[0] == first_task[1]
    assert not same_bits(keep, reset)


def test_all_tables_of_the_contract_are_filled(mnist: Dataset) -> None:
    result = train_suite(small_suite({"opt": settings("sgd")}, tasks=PAIRS, seeds=1), mnist)[0]
    tasks = 5
    accuracies = [row for row in result.rows if isinstance(row, AccuracyRow)]
    assert [(r.after_task, r.task) for r in accuracies] == [
        (i, j) for i in range(tasks + 1) for j in range(1, tasks + 1)
    ]
    spectra = [row for row in result.rows if isinstance(row, SpectrumRow) and row.task is None]
    assert [row.index for row in spectra] == list(range(20))
    assert [row.eigenvalue for row in spectra] == sorted((row.eigenvalue for row in spectra), reverse=True)
    similarity = [row for row in result.rows if isinstance(row, SimilarityRow) and row.after_task == tasks]
    cosine = {(row.class_a, row.class_b): row.cosine for row in similarity}
    assert len(cosine) == 100
    assert all(cosine[a, b] == pytest.approx(cosine[b, a]) for a, b in cosine)
    assert all(cosine[c, c] == pytest.approx(1.0) for c in range(10))
    metrics = {row.metric for row in result.rows if isinstance(row, MetricRow)}
    assert {"effective_rank", "class_cosine_mean", "hoyer", "dormant_0.025"} <= metrics


def test_a_batch_larger_than_a_task_is_refused(mnist: Dataset) -> None:
    with pytest.raises(UsageError, match="batch_size: expected at most the 800 training examples of task 1, got 5000"):
        train_suite(small_suite({"opt": settings("sgd")}, batch_size=5000), mnist)


@pytest.mark.parametrize(
    "model",
    [
        ModelSettings.of("mlp", hidden=[20]),
        ModelSettings.of("mlp", hidden=[]),
        ModelSettings.of("mlp", hidden=[12, 7, 9], activation="tanh"),
        ModelSettings.of("mlp", hidden=[12, 8], activation="gelu", normalisation="layer"),
        ModelSettings.of("cnn", channels=[3, 4], hidden=11),
    ],
    ids=["mlp", "linear", "deep tanh", "normalised gelu", "cnn"],
)
@pytest.mark.parametrize("shared", [[0, 1, 2], [0, 0, 0], [1, 0, 1]], ids=["separate", "shared", "two shared"])
def test_all_ways_to_compute_gradients_agree(model: ModelSettings, shared: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    network = build(model, InputSpec((1, 28, 28)), 10)
    layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
    weights = torch.zeros(3, layout.width)
    for view in layout.views(weights).values():
        view.copy_(torch.randn(view.shape, generator=generator) * 0.1)
    raw = torch.randint(0, 256, (64, 1, 28, 28), generator=generator, dtype=torch.uint8)
    examples = Examples(raw, torch.randint(0, 10, (64,), generator=generator))
    distinct = [BatchStream(examples, 16, suite_seed=0, trial_seed=seed, task=0) for seed in range(3)]
    streams = [distinct[i] for i in shared]
    buffer = BatchBuffer(16, Normaliser(torch.tensor(1 / 255), torch.tensor(-0.1), 1 / 255))
    written_out = MlpGradients.supports(network)
    each = [LoopGradients, *([MlpGradients] if written_out else [])]
    together = [Vmap, *([MlpTogether] if written_out else [])]
    found = []
    for way in (*each, *together):
        grads, losses = torch.zeros_like(weights), torch.zeros(3)
        bound = Bound(weights, grads, streams)
        if way in each:
            gradients = way(network, layout, buffer, bound)
        else:
            gradients = TogetherGradients(way(network, layout, bound), bound, buffer.normalise, Recordings(None))
        for step in (0, 2, 3, 9, 10):  # a bound way is reused for many steps, over epochs of 4
            gradients(step, losses)
        found.append((grads, losses))
    assert found[0][0].abs().sum() > 0
    for grads, losses in found[1:]:
        assert torch.allclose(grads, found[0][0], atol=1e-6, rtol=1e-4)
        assert torch.allclose(losses, found[0][1], rtol=1e-5)


def test_batched_and_unbatched_scores_equal_those_of_single_networks(
    mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks have the same or different examples, one has diverged, and the examples do not fit in one chunk."""
    generator = torch.Generator().manual_seed(0)
    network = build(ModelSettings.of("cnn", channels=[3], hidden=5), InputSpec((1, 28, 28)), 10)
    layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
    rows = [layout.pack(initialise(network, generator)) for _ in range(7)]
    rows[3] = rows[3] * math.nan
    one, other, third = (
        Examples(
            torch.randint(0, 256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8),
            torch.randint(0, 10, (n,), generator=generator),
        )
        for n in (2600, 40, 2600)
    )
    normalise = Normaliser.of(mnist, Protocol(), torch.device("cpu"))
    examples = [one, other, one, one, other, third, third]
    single = Evaluator(Blueprint.of_ours(network), normalise)
    readings = [single.read(row, own) for row, own in zip(rows, examples, strict=True)]
    for batched, most in ((False, 50), (True, 50), (True, 2)):
        monkeypatch.setattr("optbench.engine.evaluate.MOST", most)
        scores = Evaluator(Blueprint.of_ours(network), normalise, batched=batched).score(rows, examples)
        for i, (score, reading) in enumerate(zip(scores, readings, strict=True)):
            assert score.accuracy == reading.accuracy
            assert math.isnan(score.loss) if i == 3 else score.loss == pytest.approx(reading.loss, rel=1e-6 * batched)
    assert single.score([], []) == []


def test_a_cnn_alone_equals_the_cnn_in_lock_step(mnist: Dataset) -> None:
    suite = small_suite({"opt": settings("adamw")}, model={"kind": "cnn", "channels": [4], "hidden": 16}, seeds=2)
    together = train_suite(suite, mnist)
    assert same_bits(train_suite(suite, mnist, only=1)[0], together[1])


def test_padding_never_becomes_a_weight() -> None:
    layout = Layout.of({"a": torch.Size([3, 5]), "b": torch.Size([7])})
    assert (layout.parameters, layout.width) == (22, 32)
    weights = {"a": torch.arange(15.0).reshape(3, 5), "b": torch.ones(7)}
    row = layout.pack(weights)
    assert row.sum() == 105 + 7
    assert all(torch.equal(layout.unpack(row)[name], weight) for name, weight in weights.items())


def test_comparing_bits_treats_all_nans_as_equal() -> None:
    nans = torch.tensor([0x7FC00000, -0x400000], dtype=torch.int32).view(torch.float32)  # NaNs of both signs
    assert stack.same_bits(nans, nans.flip(0))
    assert not stack.same_bits(nans, torch.tensor([math.nan, 0.0]))
    assert not stack.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
