"""What a training has come to at the end of a task: all that it needs to go on in another process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optbench.engine.plain import NotPlain, Plain
from optbench.store.tables import Row

if TYPE_CHECKING:
    from optbench.engine.members import Member

COUNTERS = (
    "status",
    "failure",
    "last_step",
    "steps",
    "train_seconds",
    "optimizer_seconds",
    "optimizer_state_bytes",
    "fallbacks",
)
"""Fields of a member that are kept as they are."""


@dataclass(frozen=True)
class Interim:
    """One training between two tasks. Early stopping has no state there: every task begins with a count of its own."""

    trials: tuple[str, ...]
    """Ids of the trials that it is."""
    task: int
    """How many tasks it has finished, 1..T-1."""
    counters: dict[str, Any]
    row: Tensor
    """Weights (P,), on the CPU."""
    draws: Tensor
    """State of its generator, bytes."""
    state: Plain
    """Of its optimizer."""
    rows: tuple[Row, ...]
    """What it has found so far."""
    refused: str | None = None
    """Why it cannot be resumed and must be trained from the start; nothing else is kept then."""
    apart: str | None = None
    """Why its trainings have an instance each, of an optimizer that is declared elementwise."""
    seconds: float = 0.0
    """Time spent on checking the state."""

    @staticmethod
    def of(member: Member, task: int, state: Plain) -> Interim:
        counters = {name: getattr(member, name) for name in COUNTERS}
        trials = tuple(trial.id for trial in member.trials)
        row = member.row.detach().cpu().clone()
        return Interim(trials, task, counters, row, member.generator.get_state(), state, tuple(member.rows))

    @staticmethod
    def unkept(member: Member, task: int, reason: str) -> Interim:
        """What is kept of a member whose state cannot be: why not."""
        found = Interim.of(member, task, Plain(None, ()))
        return dataclasses.replace(found, row=torch.empty(0), rows=(), refused=reason)

    def restore(self, member: Member) -> None:
        """Put a member that was just made where this one was.

        Raises:
            NotPlain: it is of another network, or was not kept.
        """
        if self.refused is not None:
            raise NotPlain(self.refused)
        for name in COUNTERS:
            value = self.counters[name]
            setattr(member, name, tuple(value) if isinstance(value, list) else value)
        if self.row.shape != member.row.shape:
            raise NotPlain("weights of another network")
        member.row = self.row.to(member.row.device)
        member.generator.set_state(self.draws)
        member.state = self.state
        member.rows = list(self.rows)

    def record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All but the rows, as JSON has it, and as tensors by name."""
        tensors = {"row": self.row, "draws": self.draws}
        tensors |= {f"state.{i}": storage for i, storage in enumerate(self.state.storages)}
        record = {"trials": list(self.trials), "task": self.task, "counters": self.counters, "state": self.state.tree}
        record |= {"refused": self.refused, "apart": self.apart}
        return record, tensors

    @staticmethod
    def from_record(record: dict[str, Any], tensors: dict[str, Tensor], rows: Sequence[Row]) -> Interim:
        count = sum(name.startswith("state.") for name in tensors)
        state = Plain(record["state"], tuple(tensors[f"state.{i}"] for i in range(count)))
        # In memory of its own: what was read from a file lies anywhere.
        row = torch.empty_like(tensors["row"]).copy_(tensors["row"])
        trials, task, counters = tuple(record["trials"]), record["task"], record["counters"]
        draws, refused, apart = tensors["draws"].clone(), record.get("refused"), record.get("apart")
        return Interim(trials, task, counters, row, draws, state, tuple(rows), refused, apart)


Write = Callable[[Sequence[Interim]], None]
"""Writes the interims of all trainings of a cohort, from the same task."""
Keep = Callable[[Callable[[Write], None]], None]
"""Is called with `take` at the end of every task but the last. `take(write)` writes the states of the cohort down,
which costs time, and calls `write` with them once they can be trusted: at once, or after they have been rehearsed in
the first steps of the next task; never, where the training ends before."""
