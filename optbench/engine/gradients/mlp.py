"""Losses and gradients of plain MLPs on a CPU, computed by explicit backpropagation.

Legend: M members, B batch, D units of the first layer, E inputs of a network, P padded parameter count.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optbench.engine.batches import BatchBuffer, sharing
from optbench.engine.gradients.bound import Bound
from optbench.engine.stack import Layout
from optbench.models.mlp import Mlp


class MlpGradients:
    """Explicit backpropagation through an MLP, with all results in reused buffers.

    For layers z_l = h_(l-1) W_l^T + b_l, h_l = f(z_l), logits z_L and p = softmax(z_L):

        dz_L = (p - onehot(y)) / B,   dW_l = dz_l^T h_(l-1),   db_l = sum_B dz_l,   dz_(l-1) = (dz_l W_l) * f'(z_(l-1))

    Members with the same batch compute z_1 in one product with their stacked W_1, if this gives the same bits
    (`agrees`).
    """

    ACTIVATIONS = ("relu", "tanh")
    way = "written out"

    def __init__(self, network: nn.Module, layout: Layout, buffer: BatchBuffer, bound: Bound) -> None:
        assert isinstance(network, Mlp)
        self._buffer = buffer
        self._streams = bound.streams
        self._sharing = sharing(bound.streams)
        self._relu = network.activation == "relu"
        self._weights = [_layers(layout, row) for row in bound.weights.detach().unbind()]
        self._grads = [_layers(layout, row) for row in bound.grads.unbind()]
        self._transposed = [[w.t() for w, _ in layers] for layers in self._weights]
        self._together: dict[tuple[int, ...], _FirstLayers] = {}
        self._outputs: list[Tensor] = []
        self._deltas: list[Tensor] = []
        self._penalties = bound.penalties
        self._hits = bound.hits

    @classmethod
    def supports(cls, network: nn.Module) -> bool:
        return isinstance(network, Mlp) and network.normalisation == "none" and network.activation in cls.ACTIVATIONS

    def __call__(self, step: int, losses: Tensor) -> None:
        with torch.no_grad():
            for members in self._sharing:
                inputs, labels = self._buffer.take(self._streams[members[0]], step)
                inputs = inputs.flatten(1)
                first = self._first_layers(members, inputs)
                for k, i in enumerate(members):
                    self._member(i, inputs, labels, losses[i], first[k] if first else None)

    def _first_layers(self, members: tuple[int, ...], inputs: Tensor) -> Sequence[Tensor] | None:
        """Compute z_1 (B, D) of each member in one product, given equal inputs; return None if `agrees` is False."""
        if members not in self._together:
            weights = [self._weights[i][0] for i in members]
            if not agrees(len(members), weights[0][0].shape, inputs.shape[0]):
                return None
            self._together[members] = _FirstLayers(weights, inputs.shape[0])
        return self._together[members](inputs)

    def _member(self, i: int, inputs: Tensor, labels: Tensor, loss: Tensor, first: Tensor | None) -> None:
        layers, transposed, grads = self._weights[i], self._transposed[i], self._grads[i]
        if not self._outputs:
            self._outputs = [inputs.new_empty(inputs.shape[0], w.shape[0]) for w, _ in layers]
            self._deltas = [torch.empty_like(output) for output in self._outputs]
        outputs, deltas, last = self._outputs, self._deltas, len(layers) - 1

        h = inputs
        for k, output in enumerate(outputs):
            if k == 0 and first is not None:
                output.copy_(first)
            else:
                torch.addmm(layers[k][1], h, transposed[k], out=output)
            if k < last:
                h = output.clamp_min_(0.0) if self._relu else output.tanh_()

        if self._hits is not None:
            self._hits.see(i, outputs[last], labels)
        delta = deltas[last]
        torch.log_softmax(outputs[last], 1, out=delta)
        rows = labels.unsqueeze(1)
        torch.mean(delta.gather(1, rows), dim=(0, 1), out=loss)
        loss.neg_()
        delta.exp_()
        delta.scatter_add_(1, rows, _MINUS_ONE.to(delta).expand(rows.shape))
        delta.mul_(1.0 / labels.numel())

        for k in range(last, -1, -1):
            below = inputs if k == 0 else outputs[k - 1]
            torch.mm(delta.t(), below, out=grads[k][0])
            torch.sum(delta, 0, out=grads[k][1])
            if k:
                torch.mm(delta, layers[k][0], out=deltas[k - 1])
                delta = deltas[k - 1]
                push = self._penalties.push(i, below) if self._penalties is not None and k == last else None
                if push is not None:
                    delta.add_(push)
                if self._relu:
                    _mask_by_relu(delta, below, 0.0, grad_input=delta)
                else:
                    delta.addcmul_(delta * below, below, value=-1.0)  # f' = 1 - tanh^2


_MINUS_ONE = torch.tensor(-1.0)
# Autograd's in-place kernel for ReLU; a product with a boolean mask would take five times as long.
_mask_by_relu = torch.ops.aten.threshold_backward.grad_input


def _layers(layout: Layout, row: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return (weight, bias) of every linear layer of one member, from the input to the head."""
    views = list(layout.views(row).values())
    return list(zip(views[::2], views[1::2], strict=True))


class _FirstLayers:
    """The first layers of several members with the same inputs, combined into one layer."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], batch: int) -> None:
        units, inputs = layers[0][0].shape
        count = len(layers)
        self._layers = layers
        self._weight = layers[0][0].new_empty(count, units, inputs)
        self._bias = layers[0][1].new_empty(count, units)
        self._matrix = self._weight.view(count * units, inputs).t()
        self._out = layers[0][0].new_empty(batch, count * units)
        self._parts: Sequence[Tensor] = torch.split(self._out, units, dim=1)

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        """Map inputs (B, E) to z_1 (B, D) of every member, valid until the next call."""
        for k, (weight, bias) in enumerate(self._layers):
            self._weight[k].copy_(weight)
            self._bias[k].copy_(bias)
        torch.addmm(self._bias.view(-1), inputs, self._matrix, out=self._out)
        return self._parts


@functools.lru_cache(maxsize=256)
def agrees(count: int, shape: torch.Size, batch: int) -> bool:
    """Return whether one matrix product for `count` first layers of this shape is bit-identical to separate products.

    A BLAS library may choose the order of summation based on the shapes of the operands, but not on their values. For
    given shapes, one test on random numbers is therefore sufficient. Return False for a single layer, and for layers
    with `WIDE` or more units, because separate products are as fast.
    """
    if count == 1 or shape[0] >= WIDE:
        return False
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, shape[1], generator=draws)
    layers = [(torch.randn(shape, generator=draws), torch.randn(shape[0], generator=draws)) for _ in range(count)]
    together = _FirstLayers(layers, batch)(inputs)
    return all(torch.equal(z, torch.addmm(b, inputs, w.t())) for z, (w, b) in zip(together, layers, strict=True))


WIDE = 200
"""Number of units at which one product stops being faster than separate products (784 inputs, batch 256, one core)."""
