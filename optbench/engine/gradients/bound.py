"""The inputs and outputs to which a cohort's gradients are bound, and the interface of gradients.

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
    """Tensors bound once for many steps, so that a step creates no views."""

    weights: Tensor
    """(M, P)"""
    grads: Tensor
    """(M, P), written by each step."""
    streams: Sequence[BatchStream]
    """The source of each member's batches; members with the same object (those of one seed) share its batches."""
    passes: Sequence[Passes] = ()
    """For a user's model, the forward passes of each member; empty for built-in networks."""
    penalties: Penalties | None = None
    """Penalties added to the members' losses, if any."""
    precision: Precision = "float32"
    """Precision of forward passes, as in the protocol."""
    hits: Hits | None = None
    """Records members' predictions on their batches, if requested."""


class Gradients(Protocol):
    """Computes a cohort's gradient matrix for one step."""

    @property
    def way(self) -> str:
        """`written out`, `member by member` or `torch.func`."""
        ...

    def __call__(self, step: int, losses: Tensor) -> Mapping[int, Exception] | None:
        """Write gradients of the mean cross-entropy of batch `step` to the bound matrix, losses to `losses` (M,).

        Penalties are added to gradients but not to losses, so losses are comparable between trials.

        Returns the exceptions raised by members' models, by member.
        """
        ...


GradientsFactory: TypeAlias = Callable[[Bound], Gradients]
