"""How right members are on their training batches before the update: read off the passes that take the gradients.

Legend: M members, B batch, T positions, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optbench.engine.batches import BatchStream


class Hits:
    """What members predict of their training batches, kept from the forward passes that take the gradients."""

    def __init__(self, streams: Sequence[BatchStream]) -> None:
        """streams: of each member, all of one batch size."""
        targets = streams[0].examples.targets
        shape = (len(streams), streams[0].batch_size, *targets.shape[1:])
        self._guesses, self._targets = targets.new_empty(shape), targets.new_empty(shape)
        self._rows = list(zip(self._guesses, self._targets, strict=True))
        self.changed = (self._guesses, self._targets)
        """What `see` and `see_all` write to."""

    def see(self, i: int, logits: Tensor, targets: Tensor) -> None:
        """Note what member `i` predicts: logits (B, C) or (B, T, C), targets (B,) or (B, T)."""
        guesses, wanted = self._rows[i]
        torch.argmax(logits.detach(), -1, out=guesses)
        wanted.copy_(targets)

    def see_all(self, logits: Tensor, targets: Tensor) -> None:
        """As `see`, of all members: logits and targets with a leading axis M."""
        torch.argmax(logits.detach(), -1, out=self._guesses)
        self._targets.copy_(targets)

    def shares(self) -> Tensor:
        """Return how much of its batch each member got right, (M,) in float32: B or B·T predictions each."""
        return (self._guesses == self._targets).flatten(1).sum(1) / self._targets[0].numel()
