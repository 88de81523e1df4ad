"""Members' accuracy on each training batch before the update, from the forward passes that compute the gradients.

Legend: M members, B batch, T positions, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optbench.engine.batches import BatchStream


class Hits:
    """The predictions and targets for each member's latest batch."""

    def __init__(self, streams: Sequence[BatchStream]) -> None:
        """streams: each member's batches, all of the same size."""
        targets = streams[0].examples.targets
        shape = (len(streams), streams[0].batch_size, *targets.shape[1:])
        self._guesses, self._targets = targets.new_empty(shape), targets.new_empty(shape)
        self._rows = list(zip(self._guesses, self._targets, strict=True))
        self.changed = (self._guesses, self._targets)
        """Buffers written by `see` and `see_all`."""

    def see(self, i: int, logits: Tensor, targets: Tensor) -> None:
        """Record the predictions from the logits (B, C) or (B, T, C) of member `i`, and the targets (B,) or (B, T)."""
        guesses, wanted = self._rows[i]
        torch.argmax(logits.detach(), -1, out=guesses)
        wanted.copy_(targets)

    def see_all(self, logits: Tensor, targets: Tensor) -> None:
        """Record the predictions and targets of all members, as in `see`, from tensors with a leading axis M."""
        torch.argmax(logits.detach(), -1, out=self._guesses)
        self._targets.copy_(targets)

    def shares(self) -> Tensor:
        """Return each member's accuracy on its batch, over B or B·T predictions: (M,) in float32."""
        return (self._guesses == self._targets).flatten(1).sum(1) / self._targets[0].numel()
