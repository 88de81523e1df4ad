"""The state of a member at the end of a task, from which another process can resume the member's training."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

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
    "evaluation_seconds",
    "optimizer_state_bytes",
    "fallbacks",
    "gradients",
)
"""Fields of a member that are stored unchanged."""


class CannotResume(Exception):
    """Training cannot be resumed from a saved state, or a state cannot be saved."""


def saved(value: Any) -> bytes:
    """Serialise nested containers of tensors and numbers with `torch.save`."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def loaded(data: bytes, device: torch.device) -> Any:
    """Deserialise the result of `saved` without executing code; move accelerator tensors to `device`.

    Raises:
        CannotResume: `data` is damaged, or holds something other than tensors, numbers, text and containers of these.
    """
    try:
        return torch.load(io.BytesIO(data), lambda storage, at: _at(storage, at, device), weights_only=True)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().partition("Unsupported")[2].partition("\n")[0]
        raise CannotResume(
            f"torch.load(weights_only=True) rejects the state: {reason or type(error).__name__}"
        ) from error


def _at(storage: Any, at: str, device: torch.device) -> Any:
    restore: Callable[[Any, str], Any] = torch.serialization.default_restore_location
    return storage if at == "cpu" else restore(storage, str(device))


@dataclass(frozen=True)
class Interim:
    """The state of one member between two tasks.

    Early stopping has no state between tasks, because its count of evaluations restarts in every task.
    """

    trials: tuple[str, ...]
    """Ids of the member's trials."""
    task: int
    """Number of finished tasks, 1..T-1."""
    counters: dict[str, Any]
    state: bytes
    """The result of `saved` for these parts:

    - the weights and buffers (P + Q,), and the training weights if these are averages,
    - the states of the generator and the optimizer,
    - the weights after earlier tasks, if a metric needs them.
    """
    rows: tuple[Row, ...]
    """The member's results so far."""
    refused: str | None = None
    """Reason why training cannot be resumed and must restart; `state` and `rows` are then empty."""
    apart: str | None = None
    """Reason why members have separate instances although the optimizer is declared elementwise; None otherwise."""

    @staticmethod
    def of(member: Member, task: int, optimizer: Any, apart: str | None = None) -> Interim:
        """Capture a member's state. optimizer: the optimizer's state, made up of containers, tensors and numbers."""
        trials = tuple(trial.id for trial in member.trials)
        counters = {name: getattr(member, name) for name in COUNTERS}
        if member.unkept is not None:
            return Interim(trials, task, counters, b"", (), refused=member.unkept)
        state = {"weights": member.row.detach().cpu(), "draws": member.generator.get_state(), "optimizer": optimizer}
        state["raw"] = None if member.raw is None else member.raw.detach().cpu()
        state["ended"] = [row.detach().cpu() for row in member.ended]
        return Interim(trials, task, counters, saved(state), tuple(member.rows), apart=apart)

    def restore(self, member: Member) -> None:
        """Restore this state to a newly created member.

        Raises:
            CannotResume: the state belongs to another network, or was not stored.
        """
        if self.refused is not None:
            raise CannotResume(self.refused)
        state = loaded(self.state, member.row.device)
        if state["weights"].shape != member.row.shape:
            there, here = tuple(state["weights"].shape), tuple(member.row.shape)
            raise CannotResume(f"expected weights and buffers of shape {here}, got {there}")
        for name, value in self.counters.items():
            setattr(member, name, tuple(value) if isinstance(value, list) else value)
        member.row = state["weights"].to(member.row.device)
        raw = state.get("raw")
        member.raw = None if raw is None else raw.to(member.row.device)
        member.generator.set_state(state["draws"])
        member.state = state["optimizer"]
        member.ended = [row.to(member.row.device) for row in state.get("ended", ())]
        member.rows = list(self.rows)

    def record(self) -> dict[str, Any]:
        """Return all fields except `state` and `rows`, for JSON."""
        return {name: getattr(self, name) for name in ("trials", "task", "counters", "refused", "apart")}

    @staticmethod
    def from_record(record: dict[str, Any], state: bytes, rows: Sequence[Row]) -> Interim:
        trials, task, counters = tuple(record["trials"]), record["task"], record["counters"]
        return Interim(trials, task, counters, state, tuple(rows), record.get("refused"), record.get("apart"))


Keep = Callable[[Callable[[], list[Interim]]], None]
"""keep(take): called at the end of every task except the last. take() saves the states of all members of the cohort,
which takes time, and returns their interims."""
