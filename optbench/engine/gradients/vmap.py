"""Losses and gradients of any network, computed for all members together with `torch.func`."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from optbench.attention import unfused
from optbench.engine.autocast import logits_in
from optbench.engine.gradients.bound import Bound
from optbench.engine.stack import Layout
from optbench.models import cross_entropy


class Vmap:
    """A `Way` that uses `torch.func`: one forward and backward pass with an added member axis."""

    name = "torch.func"

    def __init__(self, network: nn.Module, layout: Layout, bound: Bound) -> None:
        network = copy.deepcopy(network)  # `functional_call` would leave weights in a layer with two names
        self._weights = layout.views(bound.weights)
        self._grads = layout.views(bound.grads)
        # Buffers are constant: networks that change their buffers are not trained together.
        rows = [each.whole(row) for each, row in zip(bound.passes, bound.weights, strict=False)]
        self._buffers = layout.buffer_views(torch.stack(rows)) if rows else {}

        penalties = bound.penalties
        self._members = torch.arange(len(bound.weights), device=bound.weights.device)

        def loss(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor, member: Tensor
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            watched = penalties.added_together(member, network, targets.ndim) if penalties else nullcontext(())
            with watched as added:
                whole = {**parameters, **buffers}
                logits = logits_in(bound.precision, inputs.device, lambda: functional_call(network, whole, (inputs,)))
            found = cross_entropy(logits, targets)
            return sum(added, found), (found, logits)

        # Networks trained together draw no random numbers; the rotations of all members come from generators.
        draws = "same" if penalties else "error"
        self._found = vmap(grad_and_value(loss, has_aux=True), randomness=draws)

    def __call__(self, inputs: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
        """Compute gradients, as in `Way`, and return the logits, (M, B, C) or (M, B, T, C)."""
        with unfused():
            found, (_, (values, logits)) = self._found(self._weights, self._buffers, inputs, targets, self._members)
        for name, target in self._grads.items():
            target.copy_(found[name])
        losses.copy_(values)
        outputs: Tensor = logits
        return outputs.detach()
