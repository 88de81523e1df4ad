"""Penalties λ‖w - w₀‖² that pull members' weights towards their initial values (see `optimizers.l2_init`).

Legend: M members, P padded parameter count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optbench.engine.stack import Layout


@dataclass(frozen=True)
class Anchor:
    """λ and w₀ of one member."""

    strength: float
    """λ; 0 has no effect."""
    start: Tensor
    """w₀ (P,)."""


class Anchors:
    """The anchors of a stack's members."""

    def __init__(self, anchors: Sequence[Anchor], layout: Layout) -> None:
        self._anchors, self._layout = list(anchors), layout
        self._starts = torch.stack([own.start for own in anchors])
        self._factors = self._starts.new_tensor([2 * own.strength for own in anchors]).unsqueeze(1)
        self._all = all(own.strength for own in anchors)
        self._push = torch.empty_like(self._starts)

    @staticmethod
    def of(anchors: Sequence[Anchor | None], layout: Layout) -> Anchors | None:
        """Collect the anchors of all members; return None if no anchor has an effect."""
        found = [anchor for anchor in anchors if anchor is not None]
        return Anchors(found, layout) if any(anchor.strength for anchor in found) else None

    def join(self, grads: Tensor, weights: Tensor) -> None:
        """Add 2λ(w - w₀) to the gradients (M, P) in place, where w are the weights (M, P).

        Gradients of members with λ = 0 are unchanged bit for bit. All operations are elementwise, so the bits of a
        member's result do not depend on the other members.
        """
        push = torch.sub(weights, self._starts, out=self._push).mul_(self._factors)
        if self._all:
            grads.add_(push)
        else:
            grads.copy_(torch.where(self._factors != 0, grads + push, grads))

    def term(self, i: int, network: nn.Module) -> Tensor | float:
        """Return λ‖w - w₀‖² for member `i` at the weights of `network`, for optimizers that evaluate the loss."""
        own = self._anchors[i]
        if own.strength == 0:
            return 0.0
        starts = self._layout.views(own.start)
        distances = [(p - starts[name]).square().sum() for name, p in network.named_parameters()]
        return own.strength * torch.stack(distances).sum()
