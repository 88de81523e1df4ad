"""The interface of lanes, and the information about members that lanes receive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optbench.engine.rates import RateCurve

Optimizer = torch.optim.Optimizer
Evaluate = Callable[[int, nn.Module, bool], Tensor]
"""evaluate(member, network, given) -> loss of `network` on the member's batch of this step, a differentiable scalar.
given: True if the optimizer received the step's gradients; False if it computes its own (see `passes.Passes`)."""
MemberState = Any
"""One member's optimizer state, which only the lane that exported it can interpret; None for a new optimizer. A state
saved at the end of a task consists of containers, tensors and numbers."""


def _unseeded(purpose: str) -> int:
    return 0


@dataclass(frozen=True)
class LaneMember:
    """The information that a lane receives about a member, in addition to the member's row."""

    hyperparameters: Mapping[str, Any]
    state: MemberState
    """The optimizer state from which the member continues."""
    generator: torch.Generator
    """The trial's generator."""
    total_steps: int
    """Number of steps that the optimizer takes after its construction if no task stops early."""
    examples: int = 0
    """Number of training examples of the task for which the optimizer is constructed."""
    draws: Callable[[str], int] = _unseeded
    """draws(purpose) -> the seed for the optimizer's random draws outside of steps."""
    ends: frozenset[str] = frozenset()
    """Names of the parameters at the ends of the network (see `optimizers.ends`)."""
    curve: RateCurve | None = None
    """The member's learning rate schedule in this task; None if the member has none."""


class RefusedError(Exception):
    """The constructor of a shared instance rejected the settings of some members; no step has been taken."""

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        """errors: exceptions raised by the constructor, by member."""
        super().__init__(errors)
        self.errors = dict(errors)


class Lane(ABC):
    """Applies one optimizer to the members of a stack.

    The constructor of a lane raises RefusedError if members share an instance and some of them have invalid settings.
    """

    raised_early: dict[int, Exception]
    """Exceptions raised during construction, restoring or `begin_task`, by member; these members take no steps."""

    @abstractmethod
    def step(self, evaluate: Evaluate, step: int) -> dict[int, Exception]:
        """Update every member using the bound gradients; return the exceptions that optimizers raise, by member.

        evaluate: computes a member's loss, for optimizers that need more than gradients.
        step: the index of the step in the task, from 0.
        """

    @abstractmethod
    def rate(self, index: int) -> float | None:
        """Return the scheduled learning rate of a member's first parameter group; None if there is none."""

    @abstractmethod
    def export(self, index: int) -> MemberState:
        """Return the optimizer state of a member, in tensors that are not shared with other members."""

    @abstractmethod
    def state_bytes(self, index: int) -> int:
        """Return the number of bytes of a member's optimizer state."""

    def begin_task(self) -> None:  # noqa: B027
        """Notify the optimizer that a new task begins; most optimizers ignore this."""

    def measured(self, index: int, row: Tensor) -> Tensor:
        """Return the weights (P,) at which to measure a member; by default, these are the training weights `row`."""
        return row

    def fallbacks(self, index: int) -> int:
        """Return how many of a member's matrix factorisations failed; each failure leaves a matrix root unchanged."""
        return 0


def tensor_bytes(value: Any) -> int:
    """Return the number of bytes of all tensors in a nested state, counting each storage once."""
    seen: dict[int, int] = {}

    def visit(item: Any) -> None:
        if isinstance(item, Tensor):
            seen[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, Mapping):
            for part in item.values():
                visit(part)
        elif isinstance(item, list | tuple):
            for part in item:
                visit(part)

    visit(value)
    return sum(seen.values())
