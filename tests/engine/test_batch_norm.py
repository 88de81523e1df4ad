"""Batch norm: training equals a plain loop, and measures use running statistics of the measured weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from optbench.data import Dataset, load
from optbench.data.settings import DatasetSettings
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.evaluate import Evaluator
from optbench.engine.execution import Execution
from optbench.engine.gradients import Ways
from optbench.engine.landscape import flat, training_loss
from optbench.engine.lanes import LaneMember
from optbench.engine.lines import POINTS, Lines
from optbench.engine.lockstep import LockStep, Machinery
from optbench.engine.passes import Passes
from optbench.engine.recording import Recordings
from optbench.engine.statistics import BATCH, EXAMPLES, reestimated
from optbench.models import Network, build, cross_entropy, materialised
from optbench.optimizers.make import resolve_spec
from optbench.optimizers.registry import complete, find
from optbench.streams import generator
from optbench.suite.protocol import Protocol
from optbench.suite.schema import ModelSettings
from optbench.tasks import Examples, TaskFamily
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.twin import train_twin

CPU = torch.device("cpu")
TINY = {"kind": "resnet", "depth": 8, "width": 4}
SMALL = {"batch_size": 16, "train_examples": 192, "test_examples": 60, "validation_examples": 60, "max_epochs": 1}
STEPS, RATES = 50, (0.1, 0.05)


@pytest.fixture(scope="module")
def small_mnist() -> Dataset:
    """MNIST at 14 x 14 pixels."""
    return load(DatasetSettings.of("mnist", resize=14))


class Ground:
    """A tiny residual network, its blueprint, and MNIST examples for its evaluation."""

    def __init__(self, dataset: Dataset, dtype: torch.dtype = torch.float32) -> None:
        network = build(ModelSettings.of(**TINY), dataset.inputs, dataset.classes)
        assert isinstance(network, Network)
        self.network, self.blueprint = network, Blueprint.of_ours(network)
        self.layout = self.blueprint.layout
        self.normalise = dataclasses.replace(Normaliser.of(dataset, Protocol(), CPU), dtype=dtype)
        self.evaluator = Evaluator(self.blueprint, self.normalise)
        self.train = Examples(dataset.train.inputs, dataset.train.targets)
        self.test = Examples(dataset.test.inputs[:150], dataset.test.targets[:150])

    def row(self, seed: int) -> Tensor:
        return self.layout.pack(self.blueprint.start(0, seed))

    def moved(self, seed: int) -> Tensor:
        """Return perturbed weights with running statistics that do not match them."""
        draws = torch.Generator().manual_seed(seed)
        row = self.row(seed)
        for name, view in self.layout.tensors(row).items():
            if view.is_floating_point():
                view.add_(0.3 * torch.rand(view.shape, generator=draws) * (1 if "running" in name else view.std()))
        return row

    def module(self, row: Tensor) -> nn.Module:
        module = materialised(self.network, CPU).to(self.normalise.dtype)
        module.load_state_dict(self.layout.unpack(row))
        return module


@pytest.fixture
def _in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_in_float64")
def test_training_equals_a_plain_loop_in_float64_and_the_member_alone(small_mnist: Dataset) -> None:
    ground = Ground(small_mnist, torch.float64)
    settings = complete("sgd", {"lr": 0.1, "momentum": 0.9})
    spec = resolve_spec(find("sgd"), settings)
    buffer, recordings = BatchBuffer(16, ground.normalise), Recordings(None)
    few = ground.train.select(torch.arange(640))
    ways = Ways(ground.blueprint, few, ground.normalise, 0, together=False)
    assert ways.alone == "batch norm"
    machinery = Machinery(
        *(spec, ground.network, ground.layout, buffer, ways.factory(buffer, recordings), recordings),
        Execution(together=False, record=None),
    )

    def rows(*seeds: int) -> list[Tensor]:
        """Return weights and buffers after `STEPS` steps; each seed has a different learning rate."""
        starts = [ground.row(seed) for seed in seeds]
        assert starts[0].dtype == torch.float64
        stack = LockStep(
            machinery,
            starts,
            [LaneMember({**settings, "lr": RATES[seed]}, None, generator(0, seed, "optimizer"), 0) for seed in seeds],
            [BatchStream(few, 16, 0, seed, 0) for seed in seeds],
            begin=True,
            passes=[Passes(materialised(ground.network, CPU), ground.layout, row, lambda *_: 0) for row in starts],
        )
        stack.run(0, STEPS, range(len(seeds)))
        return [stack.row(i) for i in range(len(seeds))]

    together = rows(0, 1)
    for seed, found in enumerate(together):
        assert torch.equal(rows(seed)[0], found)
        plain = ground.module(ground.row(seed)).train()
        optimizer = torch.optim.SGD(plain.parameters(), lr=RATES[seed], momentum=0.9)
        stream = BatchStream(few, 16, 0, seed, 0)
        for step in range(STEPS):
            places = stream.indices(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(ground.normalise(few.inputs[places])), few.targets[places]).backward()
            optimizer.step()
        tensors = ground.layout.tensors(found)
        assert tensors["norm.num_batches_tracked"] == STEPS
        for name, expected in plain.state_dict().items():
            torch.testing.assert_close(tensors[name], expected, rtol=1e-6, atol=1e-6, msg=name)


def test_a_trial_equals_its_slow_twin_and_the_trial_among_others(small_mnist: Dataset) -> None:
    """Covers evaluations, early stopping, tasks and checkpoints."""
    suite = small_suite({"sgd": {"target": "sgd", "lr": 0.05}}, model=TINY, seeds=2, **SMALL)
    results = train_suite(suite, small_mnist)
    assert same_bits(train_suite(suite, small_mnist, only=1)[0], results[1])
    for result in results:
        assert "trained member by member: batch norm" in str(trial_row(result).note)
    _, final, _ = train_twin(suite, small_mnist, 0, lambda net: torch.optim.SGD(net.parameters(), lr=0.05))
    assert results[0].weights is not None
    assert results[0].weights.keys() == final.keys()
    for name, tensor in results[0].weights.items():
        torch.testing.assert_close(tensor, final[name], rtol=1e-4, atol=1e-5, msg=name)


def test_reestimated_statistics_equal_those_of_update_bn(small_mnist: Dataset) -> None:
    ground = Ground(small_mnist)
    row = ground.moved(0)
    before = row.clone()
    found = reestimated(ground.evaluator, row, ground.train)
    assert torch.equal(row, before)
    assert torch.equal(ground.layout.weights(found), ground.layout.weights(row))
    module = ground.module(row)
    chosen = torch.arange(EXAMPLES) * len(ground.train) // EXAMPLES
    batches = EXAMPLES // BATCH
    update_bn([ground.normalise(ground.train.inputs[chosen[k::batches]]) for k in range(batches)], module)
    tensors = ground.layout.tensors(found)
    for name, expected in module.state_dict().items():
        if "running" in name:
            assert not torch.equal(tensors[name], ground.layout.tensors(row)[name])
            torch.testing.assert_close(tensors[name], expected, rtol=1e-5, atol=1e-6, msg=name)
    # The result does not depend on the previous statistics.
    assert torch.equal(reestimated(ground.evaluator, found, ground.train), found)


@pytest.mark.parametrize("target", ["sgd", "schedule-free"])
def test_averaged_weights_are_measured_with_reestimated_statistics(target: str, small_mnist: Dataset) -> None:
    """Covers averages kept by the protocol and by the optimizer."""
    if target == "schedule-free":
        pytest.importorskip("pytorch_optimizer")
    averaging = {"kind": "ema", "decay": 0.9} if target == "sgd" else None
    settings = {**SMALL, "weight_averaging": averaging, "early_stopping": None, "evaluate_every": 1}
    suite = small_suite({"it": {"target": target, "lr": 0.05}}, model=TINY, seeds=1, **settings)
    (result,) = train_suite(suite, small_mnist)
    assert result.weights is not None
    ground = Ground(small_mnist)
    row = ground.layout.pack(result.weights)
    experiment = suite.experiments["small"]
    family = TaskFamily(experiment.tasks, small_mnist, experiment.protocol, suite.seed, CPU)
    expected = ground.layout.tensors(reestimated(ground.evaluator, row, family.sequence(0).train(1)))
    for name, tensor in result.weights.items():
        assert torch.equal(tensor, expected[name]), name


def test_points_between_solutions_have_reestimated_statistics(small_mnist: Dataset) -> None:
    ground = Ground(small_mnist)
    parts = [ground.train.select(torch.arange(a, b)) for a, b in ((0, 300), (300, 500))]
    pooled = ground.train.select(torch.arange(500))
    lines = Lines(ground.evaluator, parts, ground.test, CPU, pooled)
    rows = [ground.moved(seed) for seed in range(2)]
    losses, accuracies = lines.between(*(lines.end(flat(ground.layout, row), row) for row in rows))
    assert losses is not None
    assert accuracies is not None
    for k in (0, 3, POINTS - 1):
        # In a single batch of all 500 examples the statistics are the exact means and variances.
        share = k / (POINTS - 1)
        row = rows[0].clone()
        ground.layout.weights(row).lerp_(ground.layout.weights(rows[1]), share)
        module = ground.module(row)
        update_bn([ground.normalise(pooled.inputs)], module)
        module.eval()
        with torch.no_grad():
            loss = cross_entropy(module(ground.normalise(pooled.inputs)), pooled.targets).item()
            right = (module(ground.normalise(ground.test.inputs)).argmax(1) == ground.test.targets).double().mean()
        assert losses[k].item() == pytest.approx(loss, rel=1e-4)
        assert accuracies[k].item() == pytest.approx(right.item(), abs=2 / len(ground.test))


def test_the_loss_landscape_keeps_the_statistics_of_the_solution(small_mnist: Dataset) -> None:
    ground = Ground(small_mnist)
    row = ground.moved(0)
    few = ground.train.select(torch.arange(100))
    loss = training_loss(ground.evaluator, few, row)
    moved = flat(ground.layout, row) * 1.1
    module = ground.module(row).double().eval()
    nn.utils.vector_to_parameters(moved, module.parameters())
    expected = cross_entropy(module(ground.normalise(few.inputs).double()), few.targets)
    assert loss(moved).item() == pytest.approx(expected.item(), rel=1e-10)
