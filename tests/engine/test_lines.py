"""Loss and accuracy between two solutions agree with evaluating each point as a separate network in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.data import Dataset
from optbench.engine.batches import Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.evaluate import Evaluator
from optbench.engine.landscape import flat
from optbench.engine.lines import POINTS, Lines
from optbench.engine.stack import Layout
from optbench.models import Network, build, initialise
from optbench.suite.protocol import Protocol
from optbench.suite.schema import ModelSettings
from optbench.tasks import Examples

CPU = torch.device("cpu")
MODELS: list[ModelSettings] = [
    ModelSettings.of("mlp", hidden=[16]),
    ModelSettings.of("mlp", hidden=[12, 9], activation="tanh", normalisation="layer"),
    ModelSettings.of("mlp", hidden=[]),
    ModelSettings.of("cnn", channels=[3], hidden=8),
]


class Made:
    """Two networks of one model with different weights, and examples for their evaluation."""

    def __init__(self, model: ModelSettings, dataset: Dataset) -> None:
        self.network: Network = build(model, dataset.inputs, dataset.classes)
        self.layout = Layout.of({name: p.shape for name, p in self.network.named_parameters()})
        self.normalise = Normaliser.of(dataset, Protocol(), CPU)
        self.evaluator = Evaluator(Blueprint.of_ours(self.network), self.normalise)
        split = dataset.train
        self.parts = [Examples(split.inputs[a:b], split.targets[a:b]) for a, b in ((0, 70), (70, 200))]
        self.test = Examples(dataset.test.inputs[:150], dataset.test.targets[:150])
        self.rows = [self.layout.pack(initialise(self.network, torch.Generator().manual_seed(i))) for i in (1, 2)]

    def lines(self, *, loss: bool = True, accuracy: bool = True) -> Lines:
        parts = self.parts if loss else []
        return Lines(self.evaluator, parts, self.test if accuracy else None, CPU)

    def between(self, lines: Lines, first: int = 0, last: int = 1) -> tuple[Tensor | None, Tensor | None]:
        a, b = (lines.end(flat(self.layout, self.rows[i]), self.rows[i]) for i in (first, last))
        return lines.between(a, b)

    def by_hand(self, alpha: float) -> tuple[float, float]:
        """Return the float64 loss and the float32 accuracy of the network at fraction `alpha` of the line."""
        a, b = (self.layout.unpack(row) for row in self.rows)
        weights = {name: (1 - alpha) * a[name].double() + alpha * b[name].double() for name in a}
        inputs = torch.cat([self.normalise(part.inputs) for part in self.parts]).double()
        labels = torch.cat([part.targets for part in self.parts])
        loss = nn.functional.cross_entropy(functional_call(self.network, weights, (inputs,)), labels)
        single = {name: weight.float() for name, weight in weights.items()}
        logits = functional_call(self.network, single, (self.normalise(self.test.inputs),))
        return loss.item(), (logits.argmax(1) == self.test.targets).double().mean().item()


@pytest.fixture(params=MODELS, ids=lambda model: f"{model.kind} {model.hidden}")
def made(request: pytest.FixtureRequest, mnist: Dataset) -> Made:
    return Made(request.param, mnist)


def test_every_point_equals_the_network_evaluated_there(made: Made) -> None:
    losses, accuracies = made.between(made.lines())
    assert losses is not None
    assert accuracies is not None
    expected = torch.tensor([made.by_hand(k / (POINTS - 1)) for k in range(POINTS)], dtype=torch.float64)
    assert len({round(loss, 6) for loss in expected[:, 0].tolist()}) == POINTS, "the losses of all points differ"
    torch.testing.assert_close(losses, expected[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(accuracies, expected[:, 1], rtol=0, atol=1 / len(made.test))


def test_the_line_from_a_solution_to_itself_is_constant(made: Made) -> None:
    for values in made.between(made.lines(), 1, 1):
        assert values is not None
        torch.testing.assert_close(values, values[:1].expand(POINTS), rtol=1e-14, atol=0)


def test_the_line_is_the_same_in_both_directions(made: Made) -> None:
    there, back = (made.between(made.lines(), *ends) for ends in ((0, 1), (1, 0)))
    assert there[0] is not None
    assert back[0] is not None
    torch.testing.assert_close(back[0].flip(0), there[0], rtol=1e-12, atol=0)


def test_only_the_requested_measure_is_computed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = made.between(made.lines())
    for i, asked in enumerate(({"accuracy": False}, {"loss": False})):
        found = made.between(made.lines(**asked))
        kept, other = found[i], everything[i]
        assert kept is not None
        assert other is not None
        assert torch.equal(kept, other)
        assert found[1 - i] is None

    def fail(*_: Any) -> None:
        raise AssertionError("the accuracy was read")

    monkeypatch.setattr(Evaluator, "score", fail)
    made.between(made.lines(accuracy=False))
    end = made.lines(loss=False, accuracy=False).end(flat(made.layout, made.rows[0]), made.rows[0])
    assert end.opened is None
    assert end.bytes == 8 * made.layout.parameters


def test_the_first_layer_of_an_mlp_is_applied_only_at_the_ends(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = made.lines(accuracy=False)
    a, b = (lines.end(flat(made.layout, row), row) for row in made.rows)
    converted: list[int] = []
    plain = Normaliser.__call__
    monkeypatch.setattr(
        Normaliser, "__call__", lambda self, raw, out=None: converted.append(len(raw)) or plain(self, raw, out)
    )
    lines.between(a, b)
    parts = [len(part) for part in made.parts]
    assert converted == ([] if a.opened is not None else parts), "at most once per line, not once per point"
    assert (a.opened is not None) == bool(
        getattr(made.network, "layers", ()) and made.network.__class__.__name__ == "Mlp"
    )
    if a.opened is not None:
        assert a.bytes == 8 * (made.layout.parameters + a.opened.numel())
