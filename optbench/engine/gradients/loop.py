"""Losses and gradients of any network on a CPU: autograd, member after member."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.batches import BatchBuffer, sharing
from optbench.engine.gradients.bound import Bound
from optbench.engine.stack import Layout
from optbench.models import Network


class LoopGradients:
    """A graph of its own for each member and step."""

    def __init__(self, network: Network, layout: Layout, buffer: BatchBuffer, bound: Bound) -> None:
        self._network = network
        self._buffer = buffer
        self._streams = bound.streams
        self._sharing = sharing(bound.streams)
        self._weights = [
            {name: view.requires_grad_() for name, view in layout.views(row).items()}
            for row in bound.weights.detach().unbind()
        ]
        self._grads = [list(layout.views(row).values()) for row in bound.grads.unbind()]

    def __call__(self, step: int, losses: Tensor) -> None:
        for members in self._sharing:
            inputs, labels = self._buffer.take(self._streams[members[0]], step)
            for i in members:
                weights = self._weights[i]
                loss = nn.functional.cross_entropy(functional_call(self._network, weights, (inputs,)), labels)
                found = torch.autograd.grad(loss, list(weights.values()))
                with torch.no_grad():
                    for target, value in zip(self._grads[i], found, strict=True):
                        target.copy_(value)
                    losses[i] = loss
