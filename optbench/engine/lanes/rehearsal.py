"""Check that an optimizer restored from its written state continues bit for bit before relying on that state.

A state that survives the round trip is not enough: an optimizer that looks its buffers up by `id(p)` restores every
number, finds none of them, and silently continues with different ones. So a copy is restored exactly as `--resume`
restores it, and takes the first steps of the next task alongside the original, with the same gradients, batches and
random draws. The state is kept only if both end up with the same bits.

Why alongside: stepping the original just for this check would require restoring it afterwards, which is what is being
checked; and two restored (or deep) copies agree with each other if both have lost the same buffers. This way the
original takes exactly the steps and draws that it would have taken anyway.
"""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import Tensor, nn

from optbench.engine.faults import is_broken_device, is_out_of_memory, of_the_machine
from optbench.engine.lanes.companion import Companion, same_bits
from optbench.engine.lanes.lane import Evaluate, LaneMember
from optbench.engine.lanes.per_member import written
from optbench.engine.outside import OutsideState
from optbench.engine.plain import NotPlain, Plain
from optbench.engine.stack import Layout
from optbench.optimizers.explain import spoken
from optbench.optimizers.spec import OptimizerSpec
from optbench.optimizers.takeover import classes_inside

STEPS = 100
"""Steps to compare: a multiple of the usual refresh intervals. Their cost counts towards `execution.work.SHARE`."""
COMPARED = (1, 10, STEPS)
"""Steps after which not only the weights but all that the instances hold is compared."""
HINT = "it may look its state up by id(p), or keep it outside of the instance"


class Rehearsal:
    """A copy of one training's optimizer, restored from its written state, alongside the original."""

    def __init__(
        self,
        spec: OptimizerSpec,
        member: LaneMember,
        state: Plain,
        network: nn.Module,
        row: Tensor,
        layout: Layout,
    ) -> None:
        """At the end of a task.

        member: as the next task begins with it. state: its state, written down. row: its weights (P,).

        Raises:
            NotPlain: the copy cannot be made.
        """
        started = time.perf_counter()
        optimizer, self._network = member.state
        self._spec = spec
        self._name = type(optimizer).__name__
        self._original = member.generator
        try:
            self._copy = Companion(spec, dataclasses.replace(member, state=state), network, row, layout)
        except NotPlain:
            raise
        except Exception as error:  # a user's optimizer that does not expect to be made once more
            if is_out_of_memory(error) or is_broken_device(error):
                raise
            raise NotPlain(f"the state of {self._name}: {type(error).__name__}: {spoken(error)}") from error
        self._optimizer = optimizer
        self._outside = OutsideState.of(classes_inside(optimizer).values())
        self.steps = 0
        """Steps taken so far."""
        self.reason: str | None = None
        """Why the written state cannot be trusted."""
        self.seconds = time.perf_counter() - started
        """Time spent on it."""
        self._over = False

    @property
    def over(self) -> bool:
        return self._over or self.reason is not None or self.steps >= STEPS

    def take(self, grads: Tensor) -> None:
        """Copy the gradients (P,) of the next step, before the original uses them."""
        self._copy.take(grads)

    def follow(self, evaluate: Evaluate, row: Tensor) -> None:
        """Repeat the step that led the original to the weights `row` (P,)."""
        started = time.perf_counter()
        # Before the copy's first step, which must not advance what both would share.
        if self.steps == 0:
            now = OutsideState.of(classes_inside(self._optimizer).values())
            if name := self._outside.changed(now):
                self.reason = f"{self._name} keeps state outside of the instance: {name}"
                return
        try:
            raised = self._copy.step(evaluate)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raised = error  # no memory for the copy: the original continues, and its state is not kept
        self.steps += 1
        if raised is not None:
            self.reason = f"{self._name}, restored, raised {type(raised).__name__}: {spoken(raised)}"
        elif not same_bits(self._copy.row, row):
            self.reason = f"{self._name}, restored, took another step {self.steps} of the next task: {HINT}"
        elif self.steps in COMPARED and not self._same_state():
            self.reason = f"{self._name}, restored, has another state after step {self.steps} of the next task: {HINT}"
        elif not torch.equal(self._copy.generator.get_state(), self._original.get_state()):
            self.reason = f"{self._name}, restored, drew other random numbers at step {self.steps} of the next task"
        if self.reason is not None:
            self.reason = " ".join(self.reason.split())
        self.seconds += time.perf_counter() - started

    def _same_state(self) -> bool:
        """True if both instances hold the same: what is lost may be of use only long after this."""
        try:
            original = written(self._spec, self._optimizer, self._network, self._original)
            return original.equals(self._copy.written())
        except NotPlain:  # the next time that the state is written down will tell
            return True

    def measured(self) -> None:
        """Switch modes as the original did to be measured: switching may draw random numbers, or round."""
        try:
            self._copy.measured()
        except Exception as error:  # of the user's code, as in `follow`
            if of_the_machine(error):
                raise
            said = f"{self._name}, restored, raised {type(error).__name__} on being measured: {spoken(error)}"
            self.reason = " ".join(said.split())

    def end(self) -> None:
        """Stop following: the original raised, which says nothing about the copy."""
        self._over = True
