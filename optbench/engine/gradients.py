"""Losses and gradients of all members of a cohort, three ways that agree.

| class            | for                    | how                                                                      |
|------------------|------------------------|--------------------------------------------------------------------------|
| `MlpGradients`   | plain MLPs on a CPU    | forward and backward written out, member after member, no allocation     |
| `LoopGradients`  | any network on a CPU   | autograd, member after member                                            |
| `VmapGradients`  | any network on a GPU   | `torch.func`: one batched forward and backward for the whole cohort      |

On one CPU thread a batched product is no faster than the products one by one (it is a loop inside the library), while
one member at a time keeps that member's batch, weights and gradients in the cache; what batching saves there is the
cost of calling the framework, and the hand-written path saves more of it. It also makes bit-identity plain: a member's
arithmetic does not depend on how many others there are. On a GPU the opposite holds, and batching is everything.

Legend: M members, B batch, P padded parameter count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from optbench.engine.batches import BatchBuffer, BatchStream
from optbench.engine.stack import Layout
from optbench.models import Network
from optbench.models.mlp import Mlp


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
        for i, (stream, weights, grads) in enumerate(zip(streams, self._weights, self._grads, strict=True)):
            inputs, labels = self._buffer.take(stream, step)
            loss = nn.functional.cross_entropy(functional_call(self._network, weights, (inputs,)), labels)
            found = torch.autograd.grad(loss, list(weights.values()))
            with torch.no_grad():
                for target, value in zip(grads, found, strict=True):
                    target.copy_(value)
                losses[i] = loss


class VmapGradients:
    """One batched forward and backward over the member axis."""

    def __init__(self, network: Network, layout: Layout, buffer: BatchBuffer, weights: Tensor, grads: Tensor) -> None:
        self._weights = layout.views(weights)
        self._grads = layout.views(grads)
        self._buffer = buffer

        def loss(parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(network, parameters, (inputs,)), labels)

        self._function = vmap(grad_and_value(loss))

    def __call__(self, streams: Sequence[BatchStream], step: int, losses: Tensor) -> None:
        batches = [tuple(t.clone() for t in self._buffer.take(stream, step)) for stream in streams]
        inputs, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
        found, values = self._function(self._weights, inputs, labels)
        for name, target in self._grads.items():
            target.copy_(found[name])
        losses.copy_(values)


class MlpGradients:
    """Backpropagation through an MLP written out, with every result in a buffer that is used again.

    For layers z_l = h_(l-1) W_l^T + b_l, h_l = f(z_l), logits z_L and p = softmax(z_L):

        dz_L = (p - onehot(y)) / B,   dW_l = dz_l^T h_(l-1),   db_l = sum_B dz_l,   dz_(l-1) = (dz_l W_l) * f'(z_(l-1))
    """

    ACTIVATIONS = ("relu", "tanh")

    def __init__(self, network: Network, layout: Layout, buffer: BatchBuffer, weights: Tensor, grads: Tensor) -> None:
        assert isinstance(network, Mlp)
        self._buffer = buffer
        self._relu = network.settings.activation == "relu"
        self._weights = [_layers(layout, row) for row in weights.detach().unbind()]
        self._grads = [_layers(layout, row) for row in grads.unbind()]
        self._transposed = [[w.t() for w, _ in layers] for layers in self._weights]
        self._outputs: list[Tensor] = []
        self._deltas: list[Tensor] = []

    @classmethod
    def supports(cls, network: Network) -> bool:
        return (
            isinstance(network, Mlp)
            and network.settings.normalisation == "none"
            and network.settings.activation in cls.ACTIVATIONS
        )

    def __call__(self, streams: Sequence[BatchStream], step: int, losses: Tensor) -> None:
        with torch.no_grad():
            for i, stream in enumerate(streams):
                inputs, labels = self._buffer.take(stream, step)
                self._member(i, inputs.flatten(1), labels, losses[i])

    def _member(self, i: int, inputs: Tensor, labels: Tensor, loss: Tensor) -> None:
        layers, transposed, grads = self._weights[i], self._transposed[i], self._grads[i]
        if not self._outputs:
            self._outputs = [inputs.new_empty(inputs.shape[0], w.shape[0]) for w, _ in layers]
            self._deltas = [torch.empty_like(output) for output in self._outputs]
        outputs, deltas, last = self._outputs, self._deltas, len(layers) - 1

        h = inputs
        for k, output in enumerate(outputs):
            torch.addmm(layers[k][1], h, transposed[k], out=output)
            if k < last:
                h = output.clamp_min_(0.0) if self._relu else output.tanh_()

        delta = deltas[last]
        torch.log_softmax(outputs[last], 1, out=delta)
        rows = labels.unsqueeze(1)
        torch.mean(delta.gather(1, rows), dim=(0, 1), out=loss)
        loss.neg_()
        delta.exp_()
        delta.scatter_add_(1, rows, _MINUS_ONE.expand(rows.shape))
        delta.mul_(1.0 / labels.numel())

        for k in range(last, -1, -1):
            below = inputs if k == 0 else outputs[k - 1]
            torch.mm(delta.t(), below, out=grads[k][0])
            torch.sum(delta, 0, out=grads[k][1])
            if k:
                torch.mm(delta, layers[k][0], out=deltas[k - 1])
                delta = deltas[k - 1]
                if self._relu:
                    _mask_by_relu(delta, below, 0.0, grad_input=delta)
                else:
                    delta.addcmul_(delta * below, below, value=-1.0)  # f' = 1 - tanh^2


_MINUS_ONE = torch.tensor(-1.0)
# Autograd's own kernel for ReLU, in place: a product with a mask of booleans takes five times as long.
_mask_by_relu = torch.ops.aten.threshold_backward.grad_input


def _layers(layout: Layout, row: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of every linear layer of one member, from the input to the head."""
    views = list(layout.views(row).values())
    return list(zip(views[::2], views[1::2], strict=True))
