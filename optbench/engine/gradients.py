"""Losses and gradients of all members of a cohort, three ways that agree.

| class            | for                    | how                                                                      |
|------------------|------------------------|--------------------------------------------------------------------------|
| `MlpGradients`   | plain MLPs on a CPU    | forward and backward written out, member after member, no allocation     |
| `LoopGradients`  | any network on a CPU   | autograd, member after member                                            |
| `VmapGradients`  | any network on a GPU   | `torch.func`: one batched forward and backward for the whole cohort      |

On one CPU thread a batched product is no faster than the products one by one (it is a loop inside the library), while
one member at a time keeps that member's weights and gradients in the cache; what batching saves there is the cost of
calling the framework, and the hand-written path saves more of it. It also makes bit-identity plain: a member's
arithmetic does not depend on how many others there are. On a GPU the opposite holds, and batching is everything.

In all three, members that share a stream (those of one seed) share its batches: taken once a step.

Legend: M members, B batch, P padded parameter count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from optbench.engine.batches import BatchBuffer, BatchStream, sharing
from optbench.engine.mlp_gradients import MlpGradients
from optbench.engine.stack import Layout
from optbench.models import Network


class Gradients(Protocol):
    """Fills a cohort's gradient matrix for one step."""

    def __call__(self, streams: Sequence[BatchStream], step: int, losses: Tensor) -> None:
        """Gradients of the mean cross-entropy of batch `step` into the bound matrix, losses into `losses` (M,)."""
        ...


GradientsFactory = Callable[[Tensor, Tensor], Gradients]
"""Binds (weights (M, P), gradients (M, P)) once, so that a step makes no views."""


def gradients_for(network: Network, layout: Layout, buffer: BatchBuffer, device: torch.device) -> GradientsFactory:
    """The fastest of the three ways for this network on this device."""
    if device.type != "cpu":
        return lambda weights, grads: VmapGradients(network, layout, buffer, weights, grads)
    if MlpGradients.supports(network):
        return lambda weights, grads: MlpGradients(network, layout, buffer, weights, grads)
    return lambda weights, grads: LoopGradients(network, layout, buffer, weights, grads)


class LoopGradients:
    """Autograd, member after member."""

    def __init__(self, network: Network, layout: Layout, buffer: BatchBuffer, weights: Tensor, grads: Tensor) -> None:
        self._network = network
        self._buffer = buffer
        self._weights = [
            {name: view.requires_grad_() for name, view in layout.views(row).items()}
            for row in weights.detach().unbind()
        ]
        self._grads = [list(layout.views(row).values()) for row in grads.unbind()]

    def __call__(self, streams: Sequence[BatchStream], step: int, losses: Tensor) -> None:
        for members in sharing(streams):
            inputs, labels = self._buffer.take(streams[members[0]], step)
            for i in members:
                weights = self._weights[i]
                loss = nn.functional.cross_entropy(functional_call(self._network, weights, (inputs,)), labels)
                found = torch.autograd.grad(loss, list(weights.values()))
                with torch.no_grad():
                    for target, value in zip(self._grads[i], found, strict=True):
                        target.copy_(value)
                    losses[i] = loss


class VmapGradients:
    """One batched forward and backward over the member axis.

    Legend: S different streams, B batch.
    """

    def __init__(self, network: Network, layout: Layout, buffer: BatchBuffer, weights: Tensor, grads: Tensor) -> None:
        self._weights = layout.views(weights)
        self._grads = layout.views(grads)
        self._buffer = buffer
        self._places: list[tuple[int, ...]] = []
        self._stream_of: Tensor | None = None

        def loss(parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(network, parameters, (inputs,)), labels)

        self._each_its_own = vmap(grad_and_value(loss))
        self._all_the_same = vmap(grad_and_value(loss), in_dims=(0, None, None))

    def __call__(self, streams: Sequence[BatchStream], step: int, losses: Tensor) -> None:
        if self._stream_of is None:  # the streams of a stack stay the same
            self._places = sharing(streams)
            of = {i: s for s, members in enumerate(self._places) for i in members}
            self._stream_of = torch.tensor([of[i] for i in range(len(streams))], device=losses.device)
        inputs, labels = self._buffer.take_all([streams[members[0]] for members in self._places], step)
        if len(self._places) == 1:
            found, values = self._all_the_same(self._weights, inputs[0], labels[0])
        else:
            if len(self._places) < len(streams):
                inputs, labels = inputs[self._stream_of], labels[self._stream_of]
            found, values = self._each_its_own(self._weights, inputs, labels)
        for name, target in self._grads.items():
            target.copy_(found[name])
        losses.copy_(values)
