"""Losses and gradients of plain MLPs on an accelerator, by explicit backpropagation for all members together.

Legend: M members, B batch, C classes, P padded parameter count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optbench.engine.gradients.bound import Bound
from optbench.engine.stack import Layout
from optbench.models.mlp import Mlp


class MlpTogether:
    """A `Way`: the formulas of `MlpGradients` with a member axis.

    This launches half as many kernels as `torch.func` and writes gradients directly to their destination.
    """

    name = "written out"

    def __init__(self, network: nn.Module, layout: Layout, bound: Bound) -> None:
        assert isinstance(network, Mlp)
        self._relu = network.activation == "relu"
        views, targets = list(layout.views(bound.weights.detach()).values()), list(layout.views(bound.grads).values())
        self._layers = list(zip(views[::2], views[1::2], strict=True))
        self._targets = list(zip(targets[::2], targets[1::2], strict=True))
        self._penalties = bound.penalties
        self._identity = torch.eye(self._layers[-1][1].shape[1], device=bound.weights.device)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        """Compute gradients, as in `Way`, with labels (M, B)."""
        hs = [inputs.flatten(2)]
        for k, (weight, bias) in enumerate(self._layers):
            z = torch.baddbmm(bias.unsqueeze(1), hs[-1], weight.mT)
            if k < len(self._layers) - 1:
                z = z.relu_() if self._relu else z.tanh_()
            hs.append(z)

        logits = hs.pop()
        delta = torch.log_softmax(logits, 2)
        rows = labels.unsqueeze(2)
        torch.mean(delta.gather(2, rows), dim=(1, 2), out=losses)
        losses.neg_()
        delta.exp_().sub_(nn.functional.embedding(labels, self._identity)).mul_(1.0 / labels.shape[1])

        for (weight, _), (d_weight, d_bias) in zip(reversed(self._layers), reversed(self._targets), strict=True):
            below = hs.pop()
            torch.bmm(delta.mT, below, out=d_weight)
            torch.sum(delta, 1, out=d_bias)
            if hs:
                delta = torch.bmm(delta, weight)
                if self._penalties is not None and len(hs) == len(self._layers) - 1:
                    delta = self._penalties.join(delta, below)
                if self._relu:
                    _mask_by_relu(delta, below, 0.0, grad_input=delta)
                else:
                    delta.addcmul_(delta * below, below, value=-1.0)
        return logits


_mask_by_relu = torch.ops.aten.threshold_backward.grad_input
