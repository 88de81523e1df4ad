"""Averages the weights of members while they are trained: `protocol.weight_averaging`.

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
    """What the averages of the members of a stack continue from."""

    decay: float
    rows: Sequence[Tensor | None]
    """(P,) of each member; None: not begun."""

    @staticmethod
    def of(settings: WeightAveraging | None, layout: Layout, members: Sequence[Member]) -> Averaging | None:
        """None where weights are not averaged."""
        if settings is None:
            return None
        return Averaging(settings.decay, [None if m.raw is None else layout.weights(m.row) for m in members])


class Averages:
    """Exponential moving averages of the weights of a stack, updated after each step.

        a ← w after the first step,   a ← d a + (1 - d) w after every other

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(d)`. Every element is rounded by itself, so a
    member's bits do not depend on the others; nothing waits for the device.
    """

    def __init__(self, averaging: Averaging, weights: Tensor) -> None:
        """weights: (M, P), those in training; read, never written to."""
        self._weights = weights
        self._share = 1 - averaging.decay
        self._rows = weights.clone()
        for own, row in zip(self._rows, averaging.rows, strict=True):
            if row is not None:
                own.copy_(row)
        self._fresh = [i for i, row in enumerate(averaging.rows) if row is None]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._rows.lerp_(self._weights, self._share)
        for i in self._fresh:
            self._rows[i].copy_(self._weights[i])
        self._fresh = []

    def begun(self, i: int) -> bool:
        """Whether the average of member `i` holds the weights after some step, rather than those before the first."""
        return i not in self._fresh

    def of(self, i: int) -> Tensor:
        """The average (P,) of member `i`; it changes with the next step."""
        return self._rows[i]
