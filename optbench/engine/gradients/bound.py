"""What a cohort's gradients are bound to, and what they are to the engine.

Legend: M members, P padded parameter count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from optbench.engine.batches import BatchStream
from optbench.engine.hits import Hits
from optbench.engine.passes import Passes
from optbench.engine.penalties import Penalties
from optbench.suite.protocol import Precision


@dataclass(frozen=True)
class Bound:
    """Bound once for many steps, so that a step makes no views."""

    weights: Tensor
    """(M, P)"""
    grads: Tensor
    """(M, P), written to."""
    streams: Sequence[BatchStream]
    """Where each member's batches come from; members with the same object (those of one seed) share its batches."""
    passes: Sequence[Passes] = ()
    """Of each member of a user's model; none for our own networks."""
    penalties: Penalties | None = None
    """What is added to the members' losses; None where there is nothing."""
    precision: Precision = "float32"
    """Of forward passes, as the protocol has it."""
    hits: Hits | None = None
    """Where members' predictions on their batches are recorded; None where they are not requested."""


class Gradients(Protocol):
    """Fills a cohort's gradient matrix for one step."""

    @property
    def way(self) -> str:
        """`written out`, `member by member` or `torch.func`."""
        ...

    def __call__(self, step: int, losses: Tensor) -> Mapping[int, Exception] | None:
        """Gradients of the mean cross-entropy of batch `step` into the bound matrix, losses into `losses` (M,).

        Penalties join the gradients and not the losses, which so mean the same in all trials.

        Returns what the models of members raised, if any did.
        """
        ...


GradientsFactory: TypeAlias = Callable[[Bound], Gradients]
