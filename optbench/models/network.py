"""What the engine asks of a network: features, and a linear head on top of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from optbench.suite import schema

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
}


class Network(nn.Module):
    """A classifier whose last layer is linear: `logits = head(features(x))`.

    The representation measured everywhere (rank, similarity, dormant units) is `features(x)`, the input of the last
    linear layer. A network keeps no state besides its parameters: the same weights and inputs give the same outputs.
    """

    head: nn.Linear
    initialisation: schema.Initialisation

    def features(self, x: Tensor) -> Tensor:
        """Inputs (B, C, H, W) to features (B, d)."""
        raise NotImplementedError  # abstract: every network defines its own

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, C, H, W) to logits (B, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits
