"""A network's forward passes in training, with the trial's buffers and random draws.

Legend: P padded parameter count, Q padded size of the buffers in floats, B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.randomness import seed_all, seeded
from optbench.engine.stack import EMPTY, Layout

Draws = Callable[[int, int], int]
"""draws(step, evaluation) -> the seed of a forward pass, the same for every optimizer with a given trial seed."""


class Passes:
    """The forward passes of one member in one task.

    If an optimizer evaluates the loss several times per step (SAM, L-BFGS), each evaluation draws new dropout masks and
    updates running statistics, as in a plain loop. There is one exception: the first evaluation repeats the forward
    pass of the step's gradients, with the same masks and from the same running statistics, if it uses the same weights
    or if the optimizer did not receive these gradients. A plain loop would not have run that forward pass separately.
    """

    def __init__(self, network: nn.Module, layout: Layout, row: Tensor, draws: Draws) -> None:
        """network: a copy used only by this member. row: (P + Q,), from which the buffers are copied."""
        self.network = network
        self._layout = layout
        # Not views of one row: autograd would treat a change of one buffer as a change of all.
        self._buffers = _copies(layout.buffer_views(row))
        self._before = self._after = self._buffers
        self._draws = draws
        self._weights: Mapping[str, Tensor] = EMPTY
        self._step = self._evaluations = 0
        self._opening: tuple[Mapping[str, Tensor], int] | None = None
        """The initial buffers and the index of the optimizer's first evaluation in this step; None before that."""

    def begin(self, step: int) -> None:
        """Begin step `step` of the task, counted from 0."""
        self._before = _copies(self._buffers)
        self._after = self._buffers
        self._step, self._opening = step, None

    def first(self, weights: Mapping[str, Tensor], inputs: Tensor, *, bound: bool = False) -> Tensor:
        """Compute the logits for the step's gradients at `weights`.

        bound: True if the network's parameters are already views of `weights`.

        The global generators are seeded but not restored; `LockStep` restores them after many steps.
        """
        self._weights = weights
        seed_all(self._draws(self._step, 0), inputs.device)
        logits = self._run(self.network, inputs, EMPTY if bound else weights)
        self._after = self._buffers  # no copy: later evaluations use copies
        return logits

    def again(self, network: nn.Module, inputs: Tensor, given: bool) -> Tensor:
        """Compute logits with an optimizer's network when the optimizer evaluates the loss. given: as in `Evaluate`."""
        if self._opening is None:
            own = dict(network.named_parameters())
            repeats = not given or all(torch.equal(own[name], weight) for name, weight in self._weights.items())
            self._open((self._before, 0) if repeats else (self._after, 1))
        self._evaluations += 1
        with seeded(self._draws(self._step, self._evaluations - 1), inputs.device):
            return self._run(network, inputs)

    def aside(self) -> Passes:
        """Return a copy with which a verification repeats the evaluations in this step."""
        found = copy.copy(self)
        found._open(self._opening or (self._after, 1))
        return found

    def _open(self, opening: tuple[Mapping[str, Tensor], int]) -> None:
        self._opening = opening
        self._buffers, self._evaluations = _copies(opening[0]), opening[1]

    def whole(self, weights: Tensor) -> Tensor:
        """Return weights (P,) and the current buffers as a new row (P + Q,)."""
        row = weights.new_zeros(self._layout.whole)
        row[: self._layout.width] = weights
        for name, view in self._layout.buffer_views(row).items():
            view.copy_(self._buffers[name])
        return row

    def _run(self, network: nn.Module, inputs: Tensor, weights: Mapping[str, Tensor] = EMPTY) -> Tensor:
        # Copied, because a network may modify its inputs in place, and other members read them.
        inputs = inputs.clone()
        given = {**weights, **self._buffers}
        if not given:
            found: Tensor = network(inputs)
            return found
        logits: Tensor = functional_call(network, given, (inputs,))
        # Buffers may have been replaced instead of changed in place; `functional_call` stores the new ones in `given`.
        self._buffers = {name: given[name].detach() for name in self._buffers}
        return logits


def _copies(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in buffers.items()}
