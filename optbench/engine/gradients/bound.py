"""What a cohort's gradients are bound to, and what they are to the engine.

Legend: M members, P padded parameter count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from optbench.engine.batches import BatchStream
from optbench.engine.passes import Passes


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


class Gradients(Protocol):
    """Fills a cohort's gradient matrix for one step."""

    @property
    def way(self) -> str:
        """`written out`, `member by member` or `torch.func`."""
        ...

    def __call__(self, step: int, losses: Tensor) -> Mapping[int, Exception] | None:
        """Gradients of the mean cross-entropy of batch `step` into the bound matrix, losses into `losses` (M,).

        Returns what the models of members raised, if any did.
        """
        ...


GradientsFactory: TypeAlias = Callable[[Bound], Gradients]


def same_gradients(a: Tensor, b: Tensor) -> bool:
    """True if two float32 tensors have the same bits, a NaN those of any other."""
    same = a.view(torch.int32) == b.view(torch.int32)
    return bool(same.all()) or bool((same | (a.isnan() & b.isnan())).all())
