"""The inputs and outputs of a gradient computation, and the computation's interface.

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
    """Inputs and outputs bound once for many steps, so that a step creates no views."""

    weights: Tensor
    """The members' weights (M, P)."""
    grads: Tensor
    """The members' gradients (M, P), written by each step."""
    streams: Sequence[BatchStream]
    """The source of each member's batches. Members with the same stream (members of one seed) share batches."""
    passes: Sequence[Passes] = ()
    """The forward passes of each member; empty for plain networks (`Blueprint.plain`)."""
    penalties: Penalties | None = None
    """Penalties whose gradients are added to the members' gradients; None for no penalties."""
    precision: Precision = "float32"
    """Precision of forward passes, from `protocol.precision`."""
    hits: Hits | None = None
    """Records members' predictions on their batches; None to record none."""


class Gradients(Protocol):
    """Computes a cohort's gradient matrix for one step."""

    @property
    def way(self) -> str:
        """How gradients are computed: `written out`, `member by member` or `torch.func`."""
        ...

    def __call__(self, step: int, losses: Tensor) -> Mapping[int, Exception] | None:
        """Write members' mean cross-entropies on batch `step` to `losses` (M,), and the gradients to `Bound.grads`.

        Penalties are added to gradients but not to losses, so that losses are comparable between trials.

        Return the exceptions raised by members' models, by member.
        """
        ...


GradientsFactory: TypeAlias = Callable[[Bound], Gradients]
