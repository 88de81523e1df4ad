"""Losses and gradients of any network, all members at once."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from optbench.engine.gradients.bound import Bound
from optbench.engine.stack import Layout
from optbench.models import Network


class Vmap:
    """A `Way` by `torch.func`: one forward and backward with the member axis added."""

    def __init__(self, network: Network, layout: Layout, bound: Bound) -> None:
        self._weights = layout.views(bound.weights)
        self._grads = layout.views(bound.grads)

        def loss(parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(network, parameters, (inputs,)), labels)

        self._found = vmap(grad_and_value(loss))

    def __call__(self, inputs: Tensor, labels: Tensor, losses: Tensor) -> None:
        found, values = self._found(self._weights, inputs, labels)
        for name, target in self._grads.items():
            target.copy_(found[name])
        losses.copy_(values)
