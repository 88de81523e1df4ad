"""Losses and gradients of any network, computed with autograd member by member.

Used on a CPU, and on any device for networks that no other way supports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.autocast import logits_in
from optbench.engine.batches import BatchBuffer, sharing
from optbench.engine.faults import ModelError, of_the_machine
from optbench.engine.gradients.bound import Bound
from optbench.engine.stack import Layout
from optbench.models import cross_entropy, materialised


class LoopGradients:
    """Computes gradients with a separate autograd graph for each member and step.

    On a CPU, a member's network is called as in a plain loop, with parameters that are views of the member's row.
    `functional_call` would swap the parameters in and out at every step, making steps of a small network up to a fifth
    slower.
    """

    way = "member by member"

    def __init__(self, network: nn.Module, layout: Layout, buffer: BatchBuffer, bound: Bound) -> None:
        self._buffer = buffer
        self._streams = bound.streams
        self._passes = bound.passes
        self._penalties, self._precision = bound.penalties, bound.precision
        self._hits = bound.hits
        self._sharing = sharing(bound.streams)
        device, rows = bound.weights.device, bound.weights.detach().unbind()
        self._weights = [layout.views(row) for row in rows]
        self._grads = [list(layout.views(row).values()) for row in bound.grads.unbind()]
        # Plain networks are stateless, so one network serves all members.
        self._networks = [each.network for each in bound.passes]
        if not self._networks:
            self._networks = [materialised(network, device)] * len(rows)
        self._binds = device.type == "cpu"  # on other devices, weights are passed to the module
        self._parameters: list[list[Tensor]] = (
            [list(own.parameters()) for own in self._networks]
            if self._binds
            else [[view.requires_grad_() for view in own.values()] for own in self._weights]
        )

    def __call__(self, step: int, losses: Tensor) -> Mapping[int, ModelError]:
        raised: dict[int, ModelError] = {}
        for members in self._sharing:
            inputs, targets = self._buffer.take(self._streams[members[0]], step)
            for i in members:
                try:
                    self._member(i, inputs, targets, losses)
                except Exception as error:  # a user's model may raise anything; its trial fails, the others continue
                    if not self._passes or of_the_machine(error):
                        raise
                    raised[i] = ModelError(error)
        return raised

    def _member(self, i: int, inputs: Tensor, targets: Tensor, losses: Tensor) -> None:
        if self._penalties is None:
            logits = self._logits(i, inputs)
            total = loss = cross_entropy(logits, targets)
        else:
            with self._penalties.added(i, self._networks[i], targets.ndim) as added:
                logits = self._logits(i, inputs)
                loss = cross_entropy(logits, targets)
            total = sum(added, loss)
        if self._hits is not None:
            self._hits.see(i, logits, targets)
        # Parameters that a user's module does not use have no gradient; plain networks use all parameters.
        found = torch.autograd.grad(total, self._parameters[i], allow_unused=bool(self._passes))
        _put(self._grads[i], found)
        losses[i].copy_(loss.detach())

    def _logits(self, i: int, inputs: Tensor) -> Tensor:
        return logits_in(self._precision, inputs.device, lambda: self._forward(i, inputs))

    def _forward(self, i: int, inputs: Tensor) -> Tensor:
        bound = self._bind(i)
        if self._passes:
            return self._passes[i].first(self._weights[i], inputs, bound=bound)
        if bound:
            logits: Tensor = self._networks[i](inputs)
            return logits
        found: Tensor = functional_call(self._networks[i], self._weights[i], (inputs,))
        return found

    def _bind(self, i: int) -> bool:
        """Make the network's parameters views of the member's weights, on a CPU only; return whether this was done."""
        if self._binds:
            for parameter, view in zip(self._parameters[i], self._weights[i].values(), strict=True):
                parameter.data = view
        return self._binds


@torch.no_grad()
def _put(targets: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    for target, value in zip(targets, found, strict=True):
        target.copy_(value) if value is not None else target.zero_()
