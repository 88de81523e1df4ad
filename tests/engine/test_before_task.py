"""The state of a network before a task's first update agrees with plain PyTorch and NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optbench.data import Dataset
from optbench.engine import Workspace, evaluate
from optbench.engine.batches import Normaliser
from optbench.engine.before_task import PROBED, BeforeTask, before_task, probe
from optbench.engine.evaluate import Evaluator
from optbench.models import materialised
from optbench.tasks import Examples
from tests import own_models
from tests.conftest import small_suite
from tests.engine.test_own_models import Use, use  # noqa: F401  # a fixture

CPU = torch.device("cpu")


class Ground:
    """One network with its initial weights, and examples of a task."""

    def __init__(self, mnist: Dataset, **model: Any) -> None:
        suite = small_suite({"opt": {"target": "sgd"}}, model=model or None)
        workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, CPU)
        self.blueprint = workspace.blueprint("small", "net")
        self.normalise = Normaliser.of(mnist, workspace.experiment.protocol, CPU)
        self.examples = workspace.family.sequence(0).train(1)
        self.row = self.blueprint.layout.pack(self.blueprint.start(suite.seed, 0))
        self.evaluator = Evaluator(self.blueprint, self.normalise)

    def measure(self, examples: Examples | None = None) -> BeforeTask:
        return before_task(self.evaluator, self.row, self.examples if examples is None else examples)

    def plain(self) -> tuple[Tensor, float]:
        """Return the features (N, d) and the gradient norm from a plain pass of a separate network."""
        network = materialised(self.blueprint.network, CPU)
        self.blueprint.layout.copy_to(network, self.row)
        network.eval()
        caught: list[Tensor] = []
        layer = network.get_submodule(self.blueprint.features)
        layer.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0].detach()))
        logits = network(self.normalise(self.examples.inputs))
        nn.functional.cross_entropy(logits, self.examples.targets).backward()
        squares = [p.grad.double().square().sum().item() for p in network.parameters() if p.grad is not None]
        return caught[-1].flatten(1), math.sqrt(sum(squares))


def check(ground: Ground) -> None:
    features, norm = ground.plain()
    found, h = ground.measure(), features.double().numpy()
    means = np.abs(h).mean(0)
    values = np.linalg.eigvalsh(np.cov(h.T))
    p = values[values > 1e-12 * values.max()] / values.sum()
    weights = [w.double().abs().flatten() for w in ground.blueprint.layout.views(ground.row).values() if w.ndim >= 2]
    assert found.dead == pytest.approx((h == 0).all(0).mean())
    assert found.dormant == pytest.approx((means / means.mean() <= 0.025).mean())
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert found.weight_magnitude == pytest.approx(torch.cat(weights).mean().item())
    assert found.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert (found.examples, found.width) == h.shape


@pytest.mark.parametrize("chunk", [70, 2500])
def test_measures_agree_with_plain_pytorch(chunk: int, mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", chunk)
    ground = Ground(mnist, kind="mlp", hidden=[30, 20], normalisation="layer")
    assert len(ground.examples) % 70, "the last chunk is shorter"
    views = ground.blueprint.layout.views(ground.row)
    views["norms.1.weight"][:3], views["norms.1.bias"][:3] = 0, torch.tensor([-1.0, 0.0, 1e-3])  # two dead, one dormant
    before = ground.row.clone()
    check(ground)
    found = ground.measure()
    assert found.dead == pytest.approx(2 / 20)
    assert found.dormant == pytest.approx(3 / 20)
    assert torch.equal(ground.row, before), "measuring leaves the weights unchanged"


@pytest.mark.parametrize("model", [own_models.ResNet, own_models.VisionTransformer])
def test_measures_agree_with_plain_pytorch_on_users_models(
    model: type[nn.Module],
    mnist: Dataset,
    use: Use,  # noqa: F811
) -> None:
    use(model)
    ground = Ground(mnist)
    before = ground.row.clone()
    check(ground)
    assert torch.equal(ground.row, before), "measuring leaves weights and buffers unchanged"


def test_undefined_measures_are_none_with_a_note(mnist: Dataset) -> None:
    ground = Ground(mnist, kind="mlp", hidden=[20])
    ground.blueprint.layout.views(ground.row)["layers.0.bias"].fill_(-1e6)
    found = ground.measure()
    assert (found.dead, found.dormant, found.effective_rank) == (1.0, None, 0.0)
    assert found.note == "all features are zero"
    assert found.gradient_norm is not None
    assert found.gradient_norm > 0, "the bias of the head still has a gradient"
    ground.row.fill_(torch.nan)
    found = ground.measure()
    assert (found.dead, found.dormant, found.effective_rank) == (None, None, None)
    assert (found.weight_magnitude, found.gradient_norm) == (None, None)
    assert found.note == "the features are not finite; the weights are not finite; the gradient is not finite"


def test_the_probe_is_drawn_once_for_all_tasks_and_keeps_the_order_of_examples() -> None:
    numbers = torch.arange(PROBED + 500)
    drawn = probe(Examples(numbers[:, None], numbers), 3)
    assert len(drawn) == PROBED
    assert (drawn.targets.diff() > 0).all()
    assert torch.equal(drawn.inputs[:, 0], drawn.targets)
    assert torch.equal(probe(Examples(-numbers[:, None], numbers), 3).targets, drawn.targets)
    assert not torch.equal(probe(Examples(numbers[:, None], numbers), 4).targets, drawn.targets)
    few = Examples(numbers[:PROBED, None], numbers[:PROBED])
    assert probe(few, 3) is few
