"""Losses and gradients of all members, computed together on an accelerator from batches that are gathered together.

Legend: M members, B batch, T positions of a sequence, C classes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from optbench.engine.batches import Normaliser, sharing
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.feed import Feed
from optbench.engine.recording import Recorded, Recordings


class Way(Protocol):
    """Writes losses and the bound gradients of all members, with the same operations at every call."""

    name: str
    """The value of `Gradients.way`."""

    def __call__(self, inputs: Tensor, targets: Tensor, losses: Tensor, /) -> Tensor:
        """Write losses and gradients, and return the logits, (M, B, C) or (M, B, T, C).

        inputs: (M, B, ...), where all members may share the memory of one batch. targets: (M, B) or (M, B, T).
        losses: (M,).
        """
        ...


class TogetherGradients:
    """Gathers batches and computes gradients for all members together; records this work if possible."""

    def __init__(self, way: Way, bound: Bound, normalise: Normaliser, recordings: Recordings) -> None:
        places = sharing(bound.streams)
        device = bound.weights.device
        self._way = way
        self.way = way.name
        self._members = len(bound.streams)
        self._feed = Feed([bound.streams[members[0]] for members in places], normalise)
        self._losses = torch.zeros(self._members, device=device)
        self._stream_of: Tensor | None = None
        if 1 < len(places) < self._members:
            of = {i: s for s, members in enumerate(places) for i in members}
            self._stream_of = torch.tensor([of[i] for i in range(self._members)], device=device)
        self._hits = bound.hits
        noted = () if bound.hits is None else bound.hits.changed
        self._changed = (bound.grads, self._losses, self._feed.positions, *noted)
        self._work: Recorded[None] = Recorded("gradients", recordings)

    def __call__(self, step: int, losses: Tensor) -> None:
        self._feed.aim(step)
        self._work(self._fill, lambda: self._changed)
        losses.copy_(self._losses)

    def _fill(self) -> None:
        inputs, targets = self._feed.take()
        if self._stream_of is not None:
            inputs, targets = inputs.index_select(0, self._stream_of), targets.index_select(0, self._stream_of)
        inputs, targets = (t.expand(self._members, *t.shape[1:]) for t in (inputs, targets))
        logits = self._way(inputs, targets, self._losses)
        if self._hits is not None:
            self._hits.see_all(logits, targets)
