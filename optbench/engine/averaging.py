"""Averages of members' weights during training, as set by `protocol.weight_averaging`.

Legend: M members, P padded parameter count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optbench.engine.stack import Layout
from optbench.suite.protocol import WeightAveraging

if TYPE_CHECKING:
    from optbench.engine.members import Member


@dataclass(frozen=True)
class Averaging:
    """The members' weight averages when a stack is built, and the averages' decay."""

    decay: float
    rows: Sequence[Tensor | None]
    """Each member's average (P,); None if averaging has not begun."""

    @staticmethod
    def of(settings: WeightAveraging | None, layout: Layout, members: Sequence[Member]) -> Averaging | None:
        """Collect the members' averages; return None if the protocol does not average weights."""
        if settings is None:
            return None
        return Averaging(settings.decay, [None if m.raw is None else layout.weights(m.row) for m in members])


class Averages:
    """Exponential moving averages of a stack's weights, updated after each step.

        a ← w after the first step,   a ← d a + (1 - d) w after every later step

    Equivalent to `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(d)`. All operations are elementwise,
    so the bits of a member's average do not depend on the other members. Updates do not synchronise with the device.
    """

    def __init__(self, averaging: Averaging, weights: Tensor) -> None:
        """weights: (M, P), the training weights, which are not modified."""
        self._weights = weights
        self._share = 1 - averaging.decay
        self._rows = weights.clone()
        for own, row in zip(self._rows, averaging.rows, strict=True):
            if row is not None:
                own.copy_(row)
        self._fresh = [i for i, row in enumerate(averaging.rows) if row is None]

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after a step."""
        self._rows.lerp_(self._weights, self._share)
        for i in self._fresh:
            self._rows[i].copy_(self._weights[i])
        self._fresh = []

    def begun(self, i: int) -> bool:
        """Return whether the average of member `i` includes at least one step."""
        return i not in self._fresh

    def of(self, i: int) -> Tensor:
        """Return the average (P,) of member `i`, as a view that the next update changes."""
        return self._rows[i]
