"""Forward passes of a user's model during training."""

from __future__ import annotations

import copy

import torch

from optbench.data import InputSpec
from optbench.engine.passes import Passes
from optbench.engine.randomness import kept
from optbench.engine.stack import Layout
from tests import own_models


def test_the_first_pass_uses_the_given_weights_even_if_the_network_is_not_bound_to_them() -> None:
    inputs = torch.rand(6, 1, 28, 28)
    network, other = (own_models.ResNet(InputSpec((1, 28, 28)), 3) for _ in range(2))
    persistent = network.state_dict().keys()
    parameters = {name: parameter.detach() for name, parameter in other.named_parameters()}
    layout = Layout.of({name: p.shape for name, p in parameters.items()}, dict(network.named_buffers()), persistent)
    row = layout.pack({**parameters, **dict(network.named_buffers())})
    found = []
    with kept(torch.device("cpu")):
        for one, bound in ((other, True), (network, False)):
            passes = Passes(copy.deepcopy(one), layout, row, lambda step, evaluation: 5)
            passes.begin(0)
            found.append(passes.first(parameters, inputs, bound=bound))
    assert torch.equal(*found)
    assert not torch.equal(found[0], network(inputs))
