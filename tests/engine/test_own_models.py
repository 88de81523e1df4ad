"""Users' models: any module, with buffers, random draws and custom initialisation."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from optbench.data import Dataset, InputSpec, Split
from optbench.engine import Workspace, train
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.evaluate import Evaluator
from optbench.engine.gradients.tried import together_refused
from optbench.engine.interim import Interim
from optbench.engine.landscape import flat
from optbench.engine.lines import Lines
from optbench.engine.randomness import SEEDS, seeded
from optbench.errors import DataError, UsageError
from optbench.kinds import calling
from optbench.plan import cohorts, trials
from optbench.store.tables import AccuracyRow, CurveRow, MetricRow
from optbench.streams import stream_seed
from optbench.suite import Suite
from tests import own_models
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.twin import train_twin

CPU = torch.device("cpu")
MODELS = (own_models.ResNet, own_models.VisionTransformer, own_models.InPlace)
SMALL: dict[str, Any] = {"train_examples": 192, "test_examples": 60, "validation_examples": 60, "max_epochs": 1}
Use = Callable[[Callable[..., object]], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Return a function that makes the engine build a user's class as the model `net`."""

    def put(make: Callable[..., object]) -> None:
        def build(settings: object, inputs: InputSpec, outputs: int, seed: int = 0) -> object:
            with calling(seed):
                return make(inputs, outputs)

        monkeypatch.setattr("optbench.engine.blueprint.build", build)

    return put


def opt(target: str, **hyperparameters: Any) -> dict[str, Any]:
    return {"target": target, **hyperparameters}


def sam(lr: float, rho: float) -> dict[str, Any]:
    return opt("sam", base={"target": "sgd", "lr": lr}, rho=rho)


def suite_of(optimizers: tuple[str, ...] = ("adamw",), seeds: list[int] | int = 2, **protocol: Any) -> Suite:
    return small_suite({name: opt(name, lr=0.02) for name in optimizers}, seeds=seeds, **{**SMALL, **protocol})


@pytest.mark.parametrize("model", [*MODELS, own_models.Counting])
def test_a_trial_alone_equals_the_trial_among_others(model: type[nn.Module], mnist: Dataset, use: Use) -> None:
    use(model)
    suite = suite_of(("adamw", "sgd"))
    together = train_suite(suite, mnist)
    assert all(trial_row(result).status == "ok" for result in together)
    for i in (0, 3):
        assert same_bits(train_suite(suite, mnist, only=i)[0], together[i])
    hashes = {(result.trial.seed, trial_row(result).init_hash) for result in together}
    assert len(hashes) == 2, "optimizers of a seed share initial weights"


def test_all_optimizers_of_a_seed_see_the_same_dropout_masks(mnist: Dataset, use: Use) -> None:
    """At a vanishing learning rate all optimizers, with or without a closure, see the same loss at every step."""
    use(own_models.ResNet)
    optimizers = {name: opt(name, lr=1e-30) for name in ("adamw", "sgd")} | {"sam": sam(1e-30, rho=1e-30)}
    results = train_suite(small_suite(optimizers, seeds=1, **SMALL), mnist)
    losses = [[row.train_loss for row in result.rows if isinstance(row, CurveRow)] for result in results]
    assert losses[0] == losses[1] == losses[2]
    assert len(set(losses[0])) > 1


@pytest.mark.parametrize("model", [own_models.ResNet, own_models.InPlace])
def test_training_agrees_with_a_plain_loop(model: type[nn.Module], mnist: Dataset, use: Use) -> None:
    """Covers running statistics, dropout and early stopping."""
    use(model)
    suite = small_suite({"sgd": opt("sgd", lr=0.05)}, seeds=1, **{**SMALL, "max_epochs": 3})
    (result,) = train_suite(suite, mnist)
    seed = stream_seed(suite.seed, 0, "initial weights") % SEEDS
    with seeded(seed, CPU):
        module = model(mnist.inputs, mnist.classes)

    def before(task: int, step: int) -> None:
        torch.manual_seed(stream_seed(suite.seed, 0, f"forward/task {task}/step {step}/evaluation 0") % SEEDS)

    start, final, matrix = train_twin(
        suite, mnist, 0, lambda network: torch.optim.SGD(network.parameters(), lr=0.05), module, before
    )
    assert result.weights is not None
    assert result.weights.keys() == final.keys() == start.keys()
    for name, tensor in result.weights.items():
        assert tensor.dtype == final[name].dtype
        torch.testing.assert_close(tensor, final[name], rtol=1e-4, atol=1e-5)
    found = [row.accuracy for row in result.rows if isinstance(row, AccuracyRow)]
    assert found == pytest.approx([value for row in matrix for value in row])
    module.load_state_dict(result.weights)  # a checkpoint can be loaded with `load_state_dict`


@pytest.mark.parametrize("model", [own_models.ResNet, own_models.InPlace])
def test_training_resumes_from_the_end_of_a_task(model: type[nn.Module], mnist: Dataset, use: Use) -> None:
    use(model)
    suite = suite_of(("sgd",))
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, CPU)
    (cohort,) = cohorts(trials(suite))
    kept: dict[str, Interim] = {}

    def keep(take: Callable[[], list[Interim]]) -> None:
        kept.update({interim.trials[0]: interim for interim in take()})

    whole = train(cohort, workspace, lambda progress: None, keep)
    again = {}
    for name, interim in kept.items():
        again[name] = Interim.from_record(interim.record(), interim.state, interim.rows)
    rest = train(cohort, workspace, lambda progress: None, None, again)
    assert len(kept) == 2
    assert all(map(same_bits, whole, rest))


class Repeating(torch.optim.SGD):
    """An optimizer that evaluates the closure at the current weights, like L-BFGS."""

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        loss = closure()
        super().step()
        return loss


class Around(torch.optim.SGD):
    """An optimizer that perturbs the weights while gradients are computed, like IVON."""

    @contextlib.contextmanager
    def around_forward(self) -> Iterator[None]:
        parameters = [p for group in self.param_groups for p in group["params"]]
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p in parameters:
                p.mul_(1.01)
        yield
        with torch.no_grad():
            for p, before in zip(parameters, kept, strict=True):
                p.copy_(before)


def test_closures_see_the_masks_and_statistics_of_a_plain_loop(mnist: Dataset, use: Use) -> None:
    """Evaluating the closure at the step's weights repeats the pass of a plain loop; SAM's second pass does not."""
    use(own_models.ResNet)
    suite = small_suite(
        {
            "sgd": opt("sgd", lr=0.05),
            "repeating": opt(f"{__name__}:Repeating", lr=0.05, needs="closure"),
            "sam": sam(1e-30, rho=0.05),
            "around": opt(f"{__name__}:Around", lr=0.05),
        },
        seeds=1,
        **{**SMALL, "early_stopping": None},
    )
    a, b, c, d = (result.weights for result in train_suite(suite, mnist))
    assert a is not None
    assert b is not None
    assert c is not None
    assert d is not None
    assert all(map(torch.equal, a.values(), b.values()))
    name = "blocks.0.norms.0.num_batches_tracked"
    assert (int(a[name]), int(c[name]), int(d[name])) == (12, 24, 12)


def test_a_member_that_raises_does_not_affect_others(mnist: Dataset, use: Use) -> None:
    use(own_models.RaisesLater)
    suite = small_suite({"sgd": opt("sgd", lr=[0.01, 5.0])}, seeds=1, **SMALL)
    calm, wild = train_suite(suite, mnist)
    assert trial_row(calm).status == "ok"
    row = trial_row(wild)
    assert (row.status, row.error_type, row.error_message) == ("failed", "ArithmeticError", "weights above one half")
    assert same_bits(train_suite(suite, mnist, only=0)[0], calm)


def test_an_error_at_the_shared_start_fails_every_trial(mnist: Dataset, use: Use) -> None:
    class Picky(own_models.Flat):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == SMALL["validation_examples"]:
                raise ArithmeticError("no such number")
            return super().forward(x)

    use(Picky)
    suite = small_suite({"sgd": opt("sgd", lr=[0.01, 0.1])}, seeds=1, **{**SMALL, "test_examples": 50})
    for result in train_suite(suite, mnist):
        row = trial_row(result)
        assert (row.status, row.error_message) == ("failed", "no such number")


def test_sequences_have_a_target_for_every_position(use: Use) -> None:
    use(own_models.NextToken)
    data = own_models.cycles()
    suite = small_suite(
        {"adamw": opt("adamw", lr=0.1)},
        tasks={"kind": "permuted", "count": 1, "first": "identity"},
        seeds=1,
        metrics=["effective_rank", "landscape_loss"],
        batch_size=16,
        **{**SMALL, "train_examples": 100, "max_epochs": 5},
    )
    workspace = Workspace.of(suite.experiments["small"], data, suite.seed, CPU)
    examples = workspace.family.parts.test
    (cohort,) = cohorts(trials(suite))
    (result,) = train(cohort, workspace, lambda progress: None)
    last = [row for row in result.rows if isinstance(row, AccuracyRow)][-1]
    assert last.accuracy == 1.0
    assert last.examples == examples.targets.numel() == 60 * 7
    assert last.majority == pytest.approx(0.2, abs=0.03)
    metrics = {row.metric: row.value for row in result.rows if isinstance(row, MetricRow) and row.after_task == 1}
    assert 0 < metrics["effective_rank"] <= 6


RAISED = 'by Raising.forward in own_models.py:LINE: raise RuntimeError("no attention to pay")'
GIVEN = "the model was given inputs of shape (B, 1, 28, 28)"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (own_models.Narrow, "expected logits of shape (B, 10), got (B, 7) for inputs of shape (B, 1, 28, 28)"),
        (own_models.Raising, f"RuntimeError: no attention to pay, raised {RAISED}; {GIVEN}"),
        (own_models.NotFinite, "expected finite logits, got NaN or infinity at the initial weights"),
        (
            own_models.NoLinear,
            "expected an nn.Linear, whose input is used as features, or a method features(x), got neither",
        ),
        (own_models.Frozen, "fc.bias: expected a trainable parameter, got requires_grad=False; make it a buffer"),
        (own_models.function, "expected an nn.Module, got list"),
        (
            own_models.Reassigned,
            "expected shared buffers to be changed in place, got another tensor under one of their names",
        ),
        (
            own_models.Remembering,
            "expected the same logits in a second evaluation, got different ones; keep state in buffers only",
        ),
    ],
)
def test_a_wrong_model_is_refused_before_training(
    model: Callable[..., object], message: str, mnist: Dataset, use: Use
) -> None:
    use(model)
    place = "experiments.x.models.own"
    with pytest.raises(UsageError) as error:
        Blueprint.of(suite_of().experiments["small"], "net", mnist, place)
    said = re.sub(r"\S*own_models\.py:\d+", "own_models.py:LINE", str(error.value))
    assert said == f"{place}: mlp: {message}"


def test_features_are_the_input_of_the_last_linear_layer_or_the_method(mnist: Dataset, use: Use) -> None:
    experiment = suite_of().experiments["small"]
    for model, features, output in (
        (own_models.ResNet, "fc", "fc.weight"),
        (own_models.VisionTransformer, "head", "head.weight"),
        (own_models.OwnFeatures, "features()", None),
    ):
        use(model)
        found = Blueprint.of(experiment, "net", mnist, "here")
        assert (found.features, found.output) == (features, output)


def test_models_that_cannot_train_in_lock_step_are_detected_with_the_reason(mnist: Dataset, use: Use) -> None:
    experiment = suite_of().experiments["small"]
    normalise = Normaliser.of(mnist, experiment.protocol, CPU)
    examples = Workspace.of(experiment, mnist, 0, CPU).family.parts.train
    for model, alone in (
        (own_models.ResNet, "batch norm, dropout"),
        (own_models.InPlace, "buffers that change (mean)"),
        (own_models.Batched, "logits that depend on the other examples in eval mode"),
        (own_models.VisionTransformer, None),
    ):
        use(model)
        found = Blueprint.of(experiment, "net", mnist, "here")
        assert found.alone == alone
        if alone is None:
            assert together_refused(found, examples, normalise, 0) is None
    use(own_models.ResNet)
    (result, _) = train_suite(suite_of(), mnist)
    assert "trained member by member: batch norm, dropout" in str(trial_row(result).note)


def test_a_model_that_torch_func_refuses_is_trained_member_by_member(mnist: Dataset, use: Use) -> None:
    class Asking(own_models.Flat):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if float(x.sum()) > 0 else -x)

    use(Asking)
    experiment = suite_of().experiments["small"]
    found = Blueprint.of(experiment, "net", mnist, "here")
    examples = Workspace.of(experiment, mnist, 0, CPU).family.parts.train
    refused = together_refused(found, examples, Normaliser.of(mnist, experiment.protocol, CPU), 0)
    assert refused is not None
    assert refused.startswith("RuntimeError in lock-step: vmap")


def test_landscape_and_pruning_use_the_running_statistics_of_the_checkpoint(mnist: Dataset, use: Use) -> None:
    use(own_models.ResNet)
    names = ["effective_rank", "hessian_trace", "landscape_loss", "pruning_area_global"]
    suite = suite_of(seeds=1, metrics=names)
    experiment = suite.experiments["small"]
    (result,) = train_suite(suite, mnist)
    found = {row.metric: row for row in result.rows if isinstance(row, MetricRow) and row.after_task == 2}
    assert found["landscape_loss"].value is not None
    assert found["hessian_trace"].value is not None
    # Reference: eval mode, running statistics of the checkpoint, float64.
    assert result.weights is not None
    workspace = Workspace.of(experiment, mnist, suite.seed, CPU)
    examples = workspace.family.sequence(0).train(1)
    module = own_models.ResNet(mnist.inputs, mnist.classes)
    module.load_state_dict(result.weights)
    module.eval().double()
    inputs = Normaliser.of(mnist, experiment.protocol, CPU)(examples.inputs)
    loss = nn.functional.cross_entropy(module(inputs.double()), examples.targets).item()
    assert found["landscape_loss"].value == pytest.approx(loss, rel=1e-9)


def split(inputs: torch.Tensor, targets: list[int]) -> Split:
    return Split(inputs, torch.tensor(targets))


@pytest.mark.parametrize(
    ("train_split", "message"),
    [
        (split(torch.zeros(2, 3).double(), [0, 1]), "train.inputs: expected uint8, float32 or int64, got float64"),
        (split(torch.zeros(2, 3), [0, 2]), "train.targets: expected integers in 0..1, got 0..2"),
        (split(torch.zeros(3, 3), [0, 1]), "train: expected as many inputs as targets, and at least one, got 3 and 2"),
        (split(torch.full((2, 3), torch.nan), [0, 1]), "train.inputs: expected finite numbers, got NaN or infinity"),
        (
            split(torch.zeros(2, 4), [0, 1]),
            "test: expected the form of the training examples, float32 (4,) with one target, got "
            "float32 (3,) with one target",
        ),
        (split(torch.tensor([[0, 9]]), [0]), "train.inputs: expected integers in 0..1, got 0..9"),
    ],
)
def test_a_wrong_dataset_is_refused(train_split: Split, message: str) -> None:
    with pytest.raises(DataError) as error:
        Dataset("moons", train_split, split(torch.zeros(2, 3), [0, 1]), 2)
    assert str(error.value) == f"dataset moons: {message}"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"classes": 2.0}, "classes: expected a whole number of at least 1, got 2.0"),
        ({"classes": 0}, "classes: expected a whole number of at least 1, got 0"),
        ({"mean": 0.0, "std": 0.0}, "std: expected finite numbers above 0, got (0.0,)"),
        ({"mean": (0.0,), "std": (torch.nan,)}, "std: expected finite numbers above 0, got (nan,)"),
        ({"mean": (torch.inf,), "std": (1.0,)}, "mean: expected finite numbers, got (inf,)"),
        ({"train": ([[0.0]], [0])}, "train: expected an optbench.Split, got tuple"),
    ],
)
def test_wrong_attributes_of_a_dataset_are_refused(facts: dict[str, Any], message: str) -> None:
    half = split(torch.zeros(2, 3), [0, 1])
    with pytest.raises(DataError) as error:
        Dataset(**{"name": "moons", "train": half, "test": half, "classes": 2, **facts})
    assert str(error.value) == f"dataset moons: {message}"


def test_float_inputs_are_unchanged_or_standardised() -> None:
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
    data = Dataset("moons", Split(values, torch.arange(50) % 2), Split(values, torch.arange(50) % 2), 2)
    assert data.inputs == InputSpec((2,))
    protocol = suite_of().experiments["small"].protocol
    unit, standard = (
        Normaliser.of(data, protocol.model_copy(update={"normalisation": kind}), CPU)(values)
        for kind in ("unit", "standard")
    )
    assert torch.equal(unit, values)
    assert unit is not values
    torch.testing.assert_close(standard, (values - values.mean()) / values.std(correction=0))
    own = dataclasses.replace(data, mean=(1.0, 2.0), std=(3.0, 4.0))
    found = Normaliser.of(own, protocol.model_copy(update={"normalisation": "standard"}), CPU)(values)
    torch.testing.assert_close(found, (values - torch.tensor([1.0, 2.0])) / torch.tensor([3.0, 4.0]))


def test_running_statistics_are_interpolated_between_two_solutions(mnist: Dataset, use: Use) -> None:
    use(own_models.ResNet)
    suite = small_suite({"sgd": opt("sgd", lr=0.05)}, seeds=2, **{**SMALL, "early_stopping": None})
    experiment = suite.experiments["small"]
    blueprint = Blueprint.of(experiment, "net", mnist, "here")
    weights = [result.weights for result in train_suite(suite, mnist)]
    a, b = (blueprint.layout.pack(found) for found in weights if found is not None)
    normalise = Normaliser.of(mnist, experiment.protocol, CPU)
    examples = Workspace.of(experiment, mnist, 0, CPU).family.parts.test
    lines = Lines(Evaluator(blueprint, normalise), [examples], examples, CPU)
    losses, accuracies = lines.between(*(lines.end(flat(blueprint.layout, row), row) for row in (a, b)))
    assert losses is not None
    assert accuracies is not None
    middle = len(losses) // 2
    own, others = blueprint.checkpoint(a), blueprint.checkpoint(b)
    module = own_models.ResNet(mnist.inputs, mnist.classes)
    module.load_state_dict({k: torch.lerp(v, others[k], 0.5) if v.is_floating_point() else v for k, v in own.items()})
    logits = module.eval().double()(normalise(examples.inputs).double())
    assert float(losses[middle]) == pytest.approx(
        nn.functional.cross_entropy(logits, examples.targets).item(), rel=1e-5
    )
    correct = (logits.argmax(1) == examples.targets).double().mean().item()
    assert float(accuracies[middle]) == pytest.approx(correct, abs=1.5 / 60)


class Tied(own_models.NextToken):
    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.out.weight = self.embed.weight


@pytest.mark.parametrize("optimizer", ["adamw", "shampoo", "torch.optim:ASGD"])
def test_layers_can_share_weights(optimizer: str, use: Use) -> None:
    use(Tied)
    data = own_models.cycles()
    suite = small_suite(
        {"opt": opt(optimizer)},
        tasks={"kind": "permuted", "count": 1, "first": "identity"},
        seeds=1,
        **{**SMALL, "train_examples": 64, "validation_examples": 20},
    )
    (result,) = train_suite(suite, data)
    assert trial_row(result).status == "ok", trial_row(result).error_message
    assert result.weights is not None
    assert torch.equal(result.weights["out.weight"], result.weights["embed.weight"])
    Tied(data.inputs, data.classes).load_state_dict(result.weights)


class SharedNorm(own_models.ResNet):
    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.same = next(part for part in self.modules() if isinstance(part, nn.BatchNorm2d))


def test_layers_can_share_running_statistics(mnist: Dataset, use: Use) -> None:
    use(SharedNorm)
    (result,) = train_suite(small_suite({"opt": opt("sgd", lr=0.05)}, seeds=1, **SMALL), mnist)
    assert result.weights is not None
    SharedNorm(mnist.inputs, mnist.classes).load_state_dict(result.weights)
    assert result.weights["same.num_batches_tracked"] > 0
