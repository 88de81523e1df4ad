"""The choice on a CPU between one `torch.func` call for all members and separate computations for each member.

`torch.func` is used if it is faster and gives identical bits. Timings are not reproducible, so they may decide only if
results do not depend on the decision. The reference is the computation member by member, as for a trial trained alone.
`torch.func` rarely gives the same bits. For example, a linear layer with a bias is one fused operation for a single
member, but a batched product and a separate sum for several. Where the bits are the same, as for networks without
biases, `torch.func` takes 0.2 to 0.9 times as long as the reference; elsewhere, it would usually be slower
(benchmarks/RESULTS.md).

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
"""Number of initial steps of a stack that are computed both ways; the first of them is not timed."""
MEMORY = 2**28
"""`torch.func` is tried only if all members together keep at most this many bytes for the backward pass. With more, the
call overhead that it saves is negligible."""
CHECKED = 100
"""Number of steps between comparisons of the two ways after `torch.func` was chosen."""


class OtherBitsError(Exception):
    """`torch.func` at first gave the same bits as processing each member alone, but no longer does."""


@dataclass
class Choice:
    """The results of trying `torch.func` in a cohort's steps so far."""

    possible: bool = True
    sizes: set[int] = field(default_factory=set)
    """Stack sizes for which `torch.func` was tried. Each size is tried separately, because a library's order of
    summation may depend on the size of a product."""

    def open(self, kept: int) -> bool:
        """Return whether `torch.func` may be tried. kept: the bytes that all members keep for the backward pass."""
        return self.possible and kept <= MEMORY


class ChosenGradients:
    """Computes the first steps both ways and, if the bits are equal, later steps in the faster way.

    In steps computed both ways, training uses the gradients computed for each member alone. Only this computation uses
    the members' own networks.
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
        """Compute gradients, as in `Gradients`.

        Raises:
            OtherBitsError: the two ways give different bits after `torch.func` was chosen.
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
        except Exception:  # any error: if it is not specific to `torch.func`, it is raised again below
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
    """Applies `Vmap` to batches that are taken as in `LoopGradients`."""

    def __init__(self, network: nn.Module, layout: Layout, buffer: BatchBuffer, bound: Bound) -> None:
        self._vmap = Vmap(network, layout, bound)
        self._buffer, self._streams = buffer, bound.streams
        self._sharing = sharing(bound.streams)
        self._batches: list[Tensor] = []

    @property
    def targets(self) -> Tensor:
        """Targets of the latest batches, (M, B) or (M, B, T)."""
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
        # With a member axis, the mean over a batch is summed in a different order, so each member has a separate mean.
        found = self._vmap(inputs, targets, losses)
        for i, logits in enumerate(found):
            losses[i].copy_(cross_entropy(logits, targets[i]))
        return found
