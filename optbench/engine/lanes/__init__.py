"""Lanes: three ways to apply an update to a cohort, behind one interface.

A lane is built for the members of a stack and discarded with the stack. When members leave, `export` returns the
optimizer state of each remaining member, and a new lane is built from these states. States are therefore never mixed,
and no masks are needed. Until a stopped member is removed, its results are ignored.

Legend: A members in training, P padded parameter count.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from optbench.engine.lanes.batched import BatchedLane
from optbench.engine.lanes.elementwise import ElementwiseLane
from optbench.engine.lanes.lane import Evaluate, Lane, LaneMember, MemberState, RefusedError
from optbench.engine.lanes.per_member import Instance, PerMemberLane
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.engine.user_code import UserCode
from optbench.optimizers.load import load_factory
from optbench.optimizers.make import constructor_arguments
from optbench.optimizers.spec import OptimizerSpec

__all__ = [
    "Evaluate",
    "Instance",
    "Lane",
    "LaneMember",
    "MemberState",
    "PerMemberLane",
    "RefusedError",
    "build_lane",
]


def build_lane(
    spec: OptimizerSpec,
    members: Sequence[LaneMember],
    network: nn.Module,
    weights: Tensor,
    grads: Tensor,
    layout: Layout,
    recordings: Recordings,
    *,
    begin: bool,
    clip_norm: float | None = None,
) -> Lane:
    """Build the lane of `spec` for weights (A, P) and gradients (A, P).

    network: a network of the members' architecture, without weights.
    recordings: how to record steps; ignored by lanes whose steps cannot be recorded.
    begin: True at the start of a task, when `weights` are those at which the members were measured.
    clip_norm: the norm to which a per-member lane clips gradients; other lanes receive gradients clipped by the stack.
    """
    if spec.lane == "per-member":
        return PerMemberLane(spec, members, network, weights, grads, layout, begin=begin, clip_norm=clip_norm)
    cls = load_factory(spec.target)
    states, curves = [member.state for member in members], [member.curve for member in members]
    more = spec.arguments_on.get(weights.device.type, {})
    settings = [{**constructor_arguments(spec, member.hyperparameters), **more} for member in members]
    if not spec.recordable:
        recordings = Recordings(None)
    if spec.lane == "elementwise":
        code = UserCode(spec, members[0].hyperparameters, weights.device)
        return ElementwiseLane(cls, settings, weights, grads, states, curves, recordings, code)
    return BatchedLane(cls, settings, spec.per_member, weights, grads, layout, states, curves, recordings)
