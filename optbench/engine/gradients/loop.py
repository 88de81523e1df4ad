"""Losses and gradients of any network, by autograd, member after member: on a CPU, and where nothing else will do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.batches import BatchBuffer, sharing
from optbench.engine.faults import ModelError, of_the_machine
from optbench.engine.gradients.bound import Bound
from optbench.engine.stack import Layout
from optbench.models import cross_entropy


class LoopGradients:
    """A graph of its own for each member and step."""

    def __init__(self, network: nn.Module, layout: Layout, buffer: BatchBuffer, bound: Bound) -> None:
        self._network = network
        self._buffer = buffer
        self._streams = bound.streams
        self._passes = bound.passes
        self._sharing = sharing(bound.streams)
        self._weights = [
            {name: view.requires_grad_() for name, view in layout.views(row).items()}
            for row in bound.weights.detach().unbind()
        ]
        self._grads = [list(layout.views(row).values()) for row in bound.grads.unbind()]

    def __call__(self, step: int, losses: Tensor) -> Mapping[int, ModelError]:
        raised: dict[int, ModelError] = {}
        for members in self._sharing:
            inputs, targets = self._buffer.take(self._streams[members[0]], step)
            for i in members:
                try:
                    self._member(i, inputs, targets, losses)
                except Exception as error:  # a user's model may raise anything; its trial fails, the others go on
                    if not self._passes or of_the_machine(error):
                        raise
                    raised[i] = ModelError(error)
        return raised

    def _member(self, i: int, inputs: Tensor, targets: Tensor, losses: Tensor) -> None:
        weights = self._weights[i]
        if self._passes:
            logits = self._passes[i].first(weights, inputs)
        else:
            logits = functional_call(self._network, weights, (inputs,))
        loss = cross_entropy(logits, targets)
        # Parameters that a module does not use have no gradient; of our own networks all are used.
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=bool(self._passes))
        with torch.no_grad():
            for target, value in zip(self._grads[i], found, strict=True):
                target.copy_(value) if value is not None else target.zero_()
            losses[i] = loss
