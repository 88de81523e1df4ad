"""The pull towards the initial weights, added to gradients and as a term of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optbench.engine.anchors import Anchor, Anchors
from optbench.engine.stack import Layout


@pytest.mark.parametrize("strengths", [(0.3, 2.0), (0.3, 0.0)])
def test_the_added_gradient_equals_autograd_of_the_term(strengths: tuple[float, float]) -> None:
    network = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double()
    layout = Layout.of({name: parameter.shape for name, parameter in network.named_parameters()})
    draws = torch.Generator().manual_seed(0)
    weights, starts, grads = torch.randn(3, 2, layout.width, dtype=torch.float64, generator=draws)
    anchors = Anchors.of([Anchor(s, start) for s, start in zip(strengths, starts, strict=True)], layout)
    assert anchors is not None
    before = grads.clone()
    anchors.join(grads, weights)
    for i, strength in enumerate(strengths):
        layout.copy_to(network, weights[i])
        value = sum((p - layout.views(starts[i])[name]).square().sum() for name, p in network.named_parameters())
        term = anchors.term(i, network)
        torch.testing.assert_close(torch.as_tensor(term, dtype=torch.float64), strength * torch.as_tensor(value))
        if strength == 0:
            assert torch.equal(grads[i], before[i])
            continue
        assert isinstance(term, torch.Tensor)
        found = torch.autograd.grad(term, list(network.parameters()))
        for name, push in zip(layout.views(grads[i]), found, strict=True):
            torch.testing.assert_close(layout.views(grads[i] - before[i])[name], push)


def test_nothing_is_added_at_strength_zero() -> None:
    layout = Layout.of({"w": torch.Size([2])})
    assert Anchors.of([None, None], layout) is None
    assert Anchors.of([Anchor(0.0, torch.zeros(layout.width))], layout) is None
