"""Verification of an optimizer's declaration `elementwise: true` during a task, using a member's gradients.

A few test steps before training detect most optimizers that are not elementwise. They do not detect optimizers whose
updates depend on other weights only later or only for some shapes, e.g. because of a clipped norm, a warm-up or a
branch on the shape.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from optbench.engine.faults import of_the_machine
from optbench.engine.lanes import Evaluate, Lane, LaneMember, build_lane
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout, same_bits
from optbench.errors import spoken
from optbench.optimizers.spec import OptimizerSpec

TOLERANCE = 1e-3
"""Maximum distance between the weights of the member and of the second instance, relative to the distance of the second
instance's weights from the start. It is not 0, because kernels may round the last elements of a tensor differently."""

NOT_ELEMENTWISE = "declared elementwise, but trained with one instance per trial"
"""Start of the note on trials that were trained separately because the declaration was wrong."""
RENEWED_EVERY = 37
"""Number of steps between rebuilds of the first instance, which check that all of its state is in `state`."""


class NotElementwise(Exception):
    """An optimizer declared elementwise takes different steps on stacked members, or on weights of another shape."""


class Verification:
    """Two instances that repeat a member's steps, for comparison with the member.

    The first instance steps the member's row alone. It must agree with the member bit for bit; otherwise, trials would
    depend on the other trials in their cohort. The second instance steps a network's separate parameter tensors. It
    must agree with the member up to rounding.
    """

    def __init__(
        self, spec: OptimizerSpec, member: LaneMember, network: nn.Module, row: Tensor, layout: Layout
    ) -> None:
        """Start at the beginning of the first task, from the initial weights `row` (P,).

        Exceptions raised by a user's constructor propagate.
        """
        self._start = row.detach().clone()
        per_member = dataclasses.replace(spec, lane="per-member")
        self._alone = _Companion(spec, member, network, row, layout)
        self._apart = _Companion(per_member, member, network, row, layout)
        self._steps = 0
        self._over = False
        self.difference: str | None = None
        """How the optimizer differs from an elementwise one; None if no difference has been found."""

    @property
    def over(self) -> bool:
        return self._over or self.difference is not None

    def take(self, grads: Tensor) -> None:
        """Copy the gradients (P,) of the next step before they can change."""
        for companion in (self._alone, self._apart):
            companion.grads[0].copy_(grads)

    def follow(self, evaluate: Evaluate, row: Tensor) -> None:
        """Repeat the step that led the member to the weights `row` (P,)."""
        self._steps += 1
        if self._steps % RENEWED_EVERY == 0:
            self._alone.renew()
        for companion in (self._alone, self._apart):
            if (error := companion.step(evaluate, self._steps - 1)) is not None:
                if of_the_machine(error):
                    raise error
                self.difference = f"a trial alone raised {type(error).__name__} at step {self._steps}: {spoken(error)}"
                return
        if not same_bits(self._alone.row, row):
            self.difference = (
                "stepping several trials together gives different results from stepping each alone "
                f"(at step {self._steps}), or part of the optimizer's state is not in `state`"
            )
            return
        distance, moved = torch.linalg.norm(torch.stack([self._apart.row - row, self._apart.row - self._start]), dim=1)
        if not torch.isfinite(moved + distance):
            self._over = True
        elif distance > TOLERANCE * moved:
            self.difference = (
                f"after {self._steps} steps, weights differ by up to {(self._apart.row - row).abs().max():.2g} from "
                "those of an instance that steps the network's own parameters"
            )

    def end(self) -> None:
        """End the verification after the member's optimizer raised an exception."""
        self._over = True


class _Companion:
    """A lane with one member, which receives the gradients of a member in another stack.

    The lane has its own weights, gradients, network and generator.
    """

    def __init__(
        self, spec: OptimizerSpec, member: LaneMember, network: nn.Module, row: Tensor, layout: Layout
    ) -> None:
        """Start at the beginning of a task, from the weights `row` (P,).

        Exceptions raised by a user's constructor or `begin_task` propagate.
        """
        weights = row.detach().clone()[None]
        self.row, self.grads = weights[0], torch.zeros_like(weights)
        self._member = dataclasses.replace(member, generator=member.generator.clone_state())

        def lane(member: LaneMember, *, begin: bool) -> Lane:
            return build_lane(spec, [member], network, weights, self.grads, layout, Recordings(None), begin=begin)

        self._build, self._lane = lane, lane(self._member, begin=True)
        self._lane.begin_task()
        for error in self._lane.raised_early.values():
            raise error

    def renew(self) -> None:
        """Rebuild the lane from its exported state, as is done between tasks and when members stop."""
        self._lane = self._build(dataclasses.replace(self._member, state=self._lane.export(0)), begin=False)

    def step(self, evaluate: Evaluate, step: int) -> Exception | None:
        """Take step `step` of the task; return the exception that the optimizer raised, or None."""
        return self._lane.step(evaluate, step).get(0)
