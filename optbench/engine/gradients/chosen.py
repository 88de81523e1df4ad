"""On a CPU: member after member, or all members by `torch.func` where that takes less time to the same bits.

Time cannot be measured twice alike, so it may only decide where nothing depends on it. Member after member is what a
trial alone does, so it is the reference. `torch.func` rarely has its bits: a linear layer with a bias is one fused
product alone, and a batched product and a sum with the member axis. Where it has, as in networks without biases, it
takes .2 to .9 of the time; where it has not, it would mostly be slower (benchmarks/RESULTS.md).

Legend: M members, B batch, P padded parameter count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from optbench.engine.batches import BatchBuffer, sharing
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.stack import Layout, same_bits
from optbench.models import cross_entropy

TRIED = 4
"""The first steps of a stack, taken both ways; the first of them warms up and is not timed."""
MEMORY = 2**28
"""Bytes that all members together may keep for the backward pass. Where each needs much, calls cost little anyway."""
CHECKED = 100
"""Every so many steps both ways are taken again."""


class OtherBitsError(Exception):
    """`torch.func` gave the bits of each member alone at first, and later others."""


@dataclass
class Choice:
    """What a cohort has found out about `torch.func` in its steps."""

    possible: bool = True
    sizes: set[int] = field(default_factory=set)
    """Of stacks in which it was tried and chosen. A library may order sums by the size of a product."""

    def open(self, kept: int) -> bool:
        """True if it may be tried where all members together keep so many bytes for their backward passes."""
        return self.possible and kept <= MEMORY


class ChosenGradients:
    """Takes the first steps both ways and then the faster one, if the bits are the same.

    Nothing is trained with gradients that were not tried: in the steps taken both ways, those of each member alone are
    used, and they are the only calls of the members' own networks.
    """

    def __init__(self, network: nn.Module, layout: Layout, buffer: BatchBuffer, bound: Bound, choice: Choice) -> None:
        self._choice = choice
        self._bound = bound
        self._each = LoopGradients(network, layout, buffer, bound)
        self._together = _Together(network, layout, buffer, bound)
        self._seconds = [0.0, 0.0]
        self._taken = 0

    @property
    def way(self) -> str:
        return Vmap.name if self._choice.possible and self._taken > TRIED else LoopGradients.way

    def __call__(self, step: int, losses: Tensor) -> Mapping[int, Exception] | None:
        """As `Gradients` has it.

        Raises:
            OtherBitsError: the two ways differ after `torch.func` was chosen.
        """
        if not self._choice.possible:
            return self._each(step, losses)
        size = len(losses)
        if self._taken == 0 and size in self._choice.sizes:
            self._taken = TRIED
        trying = self._taken < TRIED
        started = time.thread_time()
        try:
            logits = self._together(step, losses)
        except Exception:  # whatever it was: if it is not of this way alone, the other will raise it, too
            self._choice.possible = False
            return self._each(step, losses)
        between = time.thread_time()
        self._taken += 1
        if not trying and (self._taken - TRIED - 1) % CHECKED:
            if self._bound.hits is not None:
                self._bound.hits.see_all(logits, self._together.targets)
            return None
        grads, found = self._bound.grads.clone(), losses.clone()
        again = time.thread_time()
        raised = self._each(step, losses)
        ended = time.thread_time()
        if raised or not (same_bits(grads, self._bound.grads) and same_bits(found, losses)):
            if not trying:
                raise OtherBitsError
            self._choice.possible = False
        elif trying and self._taken > 1:
            self._seconds[0] += between - started
            self._seconds[1] += ended - again
            if self._taken == TRIED:
                together, each = self._seconds
                self._choice.possible = together < each
                self._choice.sizes.add(size)
        return raised


class _Together:
    """`Vmap` on batches as `LoopGradients` takes them."""

    def __init__(self, network: nn.Module, layout: Layout, buffer: BatchBuffer, bound: Bound) -> None:
        self._vmap = Vmap(network, layout, bound)
        self._buffer, self._streams = buffer, bound.streams
        self._sharing = sharing(bound.streams)
        self._batches: list[Tensor] = []

    @property
    def targets(self) -> Tensor:
        """Of the last batches, (M, B) or (M, B, T)."""
        return self._batches[1]

    def __call__(self, step: int, losses: Tensor) -> Tensor:
        """Return the logits, (M, B, C) or (M, B, T, C)."""
        for members in self._sharing:
            batch = self._buffer.take(self._streams[members[0]], step)
            if not self._batches:
                self._batches = [part.new_empty(len(self._streams), *part.shape) for part in batch]
            for stacked, part in zip(self._batches, batch, strict=True):
                for i in members:
                    stacked[i].copy_(part)
        inputs, targets = self._batches
        # The mean over a batch is another sum with the member axis.
        found = self._vmap(inputs, targets, losses)
        for i, logits in enumerate(found):
            losses[i].copy_(cross_entropy(logits, targets[i]))
        return found
