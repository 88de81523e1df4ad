"""What every lane is to the engine, and what it is told of its members."""

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
"""evaluate(member, network, given) -> mean cross-entropy on its batch of this step, a scalar to take gradients of.
given: whether its optimizer has been given the gradients of the step; if not, its first evaluation stands for them."""
MemberState = Any
"""One member's optimizer state, opaque to everyone but the lane that exported it; None is a fresh start. One that
was saved at the end of a task is in containers, tensors and numbers."""


def _unseeded(purpose: str) -> int:
    return 0


@dataclass(frozen=True)
class LaneMember:
    """What a lane is told of a member, beside its row of the stack."""

    hyperparameters: Mapping[str, Any]
    state: MemberState
    """The state it continues from."""
    generator: torch.Generator
    """Its own."""
    total_steps: int
    """From the state's beginning, if nothing stops it sooner."""
    examples: int = 0
    """Training examples of the task at which its optimizer is made."""
    draws: Callable[[str], int] = _unseeded
    """draws(purpose) -> the seed of what its optimizer draws outside of steps."""
    ends: frozenset[str] = frozenset()
    """The parameters at the ends of the network, by name: see `optimizers.ends`."""
    curve: RateCurve | None = None
    """By which its rate is scaled in this task; None: not at all."""


class RefusedError(Exception):
    """The constructor of a shared instance refused the settings of some members; no step has been taken."""

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        """errors: what the constructor raised, by member."""
        super().__init__(errors)
        self.errors = dict(errors)


class Lane(ABC):
    """An optimizer at work on a cohort.

    Its constructor raises RefusedError where members share an instance and some of them have settings that cannot be.
    """

    raised_early: dict[int, Exception]
    """Exceptions from the constructor, restoring or `begin_task`, by member; these members take no step."""

    @abstractmethod
    def step(self, evaluate: Evaluate, step: int) -> dict[int, Exception]:
        """One update of every member from the bound gradients; members whose optimizer raised, with what it raised.

        evaluate: for an optimizer that asks for more than gradients. step: its number in the task, from 0 on.
        """

    @abstractmethod
    def rate(self, index: int) -> float | None:
        """The rate of a member's first parameter group, times the schedule's factor in the step before; None without
        one."""

    @abstractmethod
    def export(self, index: int) -> MemberState:
        """The state of a member, in tensors of its own."""

    @abstractmethod
    def state_bytes(self, index: int) -> int:
        """Bytes of a member's optimizer state."""

    def begin_task(self) -> None:  # noqa: B027
        """Tell the optimizer that a new task begins; most know nothing of tasks."""

    def measured(self, index: int, row: Tensor) -> Tensor:
        """The weights (P,) to measure a member at; `row` itself unless its optimizer keeps others for training."""
        return row

    def fallbacks(self, index: int) -> int:
        """How often a factorisation of a member had to be replaced."""
        return 0


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested state, each storage once."""
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
