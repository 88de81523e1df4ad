"""Tests of whether an optimizer with an instance per member can be resumed from its `state_dict()`.

There are two failure modes. If `state_dict()` is incomplete, a restored instance holds different data. If restored
state is not found again (for example because it is looked up by `id(p)`), later steps differ. Therefore, an instance is
restored from every saved state and compared with the original. The later steps of both instances are also compared, but
only once per cohort for each combination of settings. For this purpose, all non-zero numbers count as equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from optbench.engine.batches import BatchStream
from optbench.engine.faults import of_the_machine
from optbench.engine.interim import CannotResume, loaded, saved
from optbench.engine.lanes import Instance, LaneMember, MemberState, PerMemberLane
from optbench.engine.lockstep import LockStep, Machinery
from optbench.engine.passes import Passes
from optbench.engine.stack import same_bits
from optbench.errors import spoken

BEFORE, AFTER = 12, 12
"""Numbers of test steps before and after saving an instance; neither is a multiple of a common refresh interval."""
UNTRIED = "the optimizer raised an exception before its state could be tested"


def proven_state(machinery: Machinery, member: LaneMember, row: Tensor) -> MemberState:
    """Return the state of a member's instance, after verifying that a restored instance holds the same data.

    Raises:
        CannotResume: the verification fails.
    """
    instance: Instance = member.state
    name = type(instance.optimizer).__name__
    methods = ("state_dict", "load_state_dict")
    if missing := [each for each in methods if not callable(getattr(instance.optimizer, each, None))]:
        raise CannotResume(f"{name} has no {' and no '.join(missing)}")
    try:
        state = instance.saved()
        noise = member.generator.clone_state()
        own = dataclasses.replace(member, state=loaded(saved(state), row.device), generator=noise)
        weights = machinery.layout.weights(row).clone()[None]
        lane = PerMemberLane(
            machinery.spec, [own], machinery.network, weights, weights.clone(), machinery.layout, begin=False
        )
        _compare(instance, member.generator, lane.export(0), noise)
    except Exception as error:
        if of_the_machine(error) or isinstance(error, CannotResume):
            raise
        raise CannotResume(f"{name}: {type(error).__name__}: {spoken(error)}") from error
    return state


def obstacle(
    machinery: Machinery,
    member: LaneMember,
    row: Tensor,
    stream: BatchStream,
    passes: Callable[[Tensor], Passes | None],
) -> str | None:
    """Return the reason why trials of this optimizer cannot be resumed; None if they can.

    member: a member before its first step.
    row: the row of the member's initial weights and buffers.
    stream: the member's batches.
    passes: returns the member's forward passes, starting from the buffers of a row; None for a plain network.
    """
    noise = member.generator

    def stack(state: MemberState, row: Tensor, noise: torch.Generator) -> LockStep:
        own = dataclasses.replace(member, state=state, generator=noise)
        kept = [found] if (found := passes(row)) is not None else []
        return LockStep(machinery, [row], [own], [stream], begin=True, passes=kept)

    try:
        original = stack(None, row, noise)
        if _raised(original, 0, BEFORE) is not None:
            return UNTRIED
        row, live = original.measured(0).clone(), original.state(0)
        state = proven_state(machinery, dataclasses.replace(member, state=live), row)
        name, draws = type(live.optimizer).__name__, noise.clone_state()
        copy = stack(loaded(saved(state), row.device), row, draws)
        original = stack(live, row, noise)
        for step in range(BEFORE, BEFORE + AFTER):
            if _raised(original, step, step + 1) is not None:
                return UNTRIED
            if (error := _raised(copy, step, step + 1)) is not None:
                return f"a restored {name} raised {type(error).__name__}: {spoken(error)}"
            same = same_bits(original.row(0), copy.row(0)) and torch.equal(noise.get_state(), draws.get_state())
            if not same:
                return f"a restored {name} takes different steps; it may look up state by id(p) or keep state elsewhere"
        _compare(original.state(0), noise, copy.state(0), draws)
    except CannotResume as error:
        return str(error)
    except Exception as error:  # raised by the optimizer's code
        if of_the_machine(error):
            raise
        return f"testing whether a trial can be resumed raised {type(error).__name__}: {spoken(error)}"
    return None


def _raised(stack: LockStep, step: int, until: int) -> Exception | None:
    raised = stack.raised_early or stack.take(step, until, {0})[1]
    return next(iter(raised.values()), None)


def _compare(a: Instance, noise_a: torch.Generator, b: Instance, noise_b: torch.Generator) -> None:
    """Raise CannotResume if two instances hold different data."""
    if (where := a.differs(noise_a, b, noise_b)) is not None:
        name = type(a.optimizer).__name__
        raise CannotResume(f"{name}.load_state_dict(state_dict()) does not restore {where}")
