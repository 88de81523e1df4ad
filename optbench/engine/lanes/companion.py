"""A second instance of a member's optimizer that takes the same steps from the same gradients.

Legend: P padded parameter count.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from optbench.engine.lanes.elementwise import ElementwiseLane
from optbench.engine.lanes.lane import Evaluate, Lane, LaneMember, MemberState
from optbench.engine.lanes.per_member import PerMemberLane
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.engine.user_code import UserCode
from optbench.optimizers.load import load_factory
from optbench.optimizers.make import constructor_arguments
from optbench.optimizers.spec import OptimizerSpec


class Companion:
    """A lane with one member, fed with the gradients of a member of another stack.

    It shares nothing with that member: weights, gradients, network and generator are its own.
    """

    def __init__(
        self, spec: OptimizerSpec, member: LaneMember, network: nn.Module, row: Tensor, layout: Layout
    ) -> None:
        """At the beginning of a task, from `row` (P,).

        Raises whatever a user's constructor or `begin_task` raises.
        """
        self._weights = row.detach().clone()[None]
        self._grads = torch.zeros_like(self._weights)
        member = dataclasses.replace(member, generator=member.generator.clone_state())
        self._spec, self._member = spec, member
        self._lane: Lane
        if spec.lane == "elementwise":
            self._lane = self._elementwise(member.state)
        else:
            self._lane = PerMemberLane(spec, [member], network, self._weights, self._grads, layout, begin=True)
        self._lane.begin_task()
        for error in self._lane.raised_early.values():
            raise error

    def _elementwise(self, state: MemberState) -> Lane:
        settings = [constructor_arguments(self._spec, self._member.hyperparameters)]
        unrecorded = Recordings(None)
        cls, code = (
            load_factory(self._spec.target),
            UserCode(self._spec, self._member.hyperparameters, self._weights.device),
        )
        return ElementwiseLane(cls, settings, self._weights, self._grads, [state], unrecorded, code)

    def renew(self) -> None:
        """Rebuild its elementwise lane from the exported state, as happens between tasks and when members stop."""
        self._lane = self._elementwise(self._lane.export(0))

    @property
    def row(self) -> Tensor:
        """Its weights (P,), which the next step changes."""
        return self._weights[0]

    def take(self, grads: Tensor) -> None:
        """Copy the gradients (P,) of the next step, before anything can change them."""
        self._grads[0].copy_(grads)

    def measured(self) -> None:
        """Switch its modes as for a measurement, and back."""
        self._lane.measured(0, self._weights[0])

    def step(self, evaluate: Evaluate) -> Exception | None:
        """Take one step; return what the optimizer raised, if anything."""
        return self._lane.step(evaluate).get(0)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """True if two float32 tensors have the same bits; NaNs are compared by their bits, too."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))
