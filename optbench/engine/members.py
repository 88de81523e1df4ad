"""The engine's records of trials during training, and the results of trials."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optbench.engine.evaluate import Score
from optbench.engine.lanes import MemberState
from optbench.engine.lanes.verification import Verification
from optbench.errors import spoken
from optbench.plan import Trial
from optbench.plan.progress import Progress
from optbench.store.tables import Row
from optbench.suite.protocol import Protocol

Notify = Callable[[Progress], None]


@dataclass(frozen=True)
class TrialResult:
    """The results of one trial: its rows, and its final weights unless it diverged or failed."""

    trial: Trial
    rows: tuple[Row, ...]
    weights: dict[str, Tensor] | None


@dataclass
class Member:
    """One network in training, and the trials that share the network because they differ only in names."""

    trials: tuple[Trial, ...]
    row: Tensor
    """Weights and buffers (P + Q,), not up to date while the member is in a stack. The weights are averages if the
    protocol averages weights."""
    init_hash: str
    generator: torch.Generator
    """The trial's generator, for an optimizer that draws random numbers."""
    state: MemberState = None
    raw: Tensor | None = None
    """Weights and buffers (P + Q,) from which training continues if `row` holds averages; otherwise None."""
    status: str = "running"
    failure: tuple[str, str] | None = None
    """Type and message of the exception that the member's optimizer or model raised; None if there was none."""
    last_step: int = 0
    steps: int = 0
    train_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    optimizer_state_bytes: int = 0
    fallbacks: int = 0
    gradients: str | None = None
    """How gradients were last computed, as in `Gradients.way`; None before the first step."""
    rows: list[Row] = field(default_factory=list)
    ended: list[Tensor] = field(default_factory=list)
    """Weights and buffers (P + Q,) after each task so far; empty unless a metric of task overlap needs them."""
    unkept: str | None = None
    """Reason why the optimizer's state cannot be saved between tasks; None if none is known."""
    follower: Verification | None = None
    """The verification that repeats the member's steps; None if the member is not verified."""
    validated: Score | None = None
    """The score of `row` on the validation data of the task just finished; None if unknown."""
    start: Tensor = field(init=False)
    """The initial weights and buffers (P + Q,) of the current network. This is the first value of `row`, a tensor that
    is never modified in place."""

    def __post_init__(self) -> None:
        self.start = self.row

    @property
    def trial(self) -> Trial:
        """The first of the member's trials, which represents all of them."""
        return self.trials[0]

    def fail(self, error: Exception) -> None:
        """Mark the member as failed because its model raised `error`."""
        self.status, self.failure = "failed", (type(error).__name__, spoken(error))

    @property
    def trained(self) -> Tensor:
        """Weights and buffers (P + Q,) from which training continues."""
        return self.row if self.raw is None else self.raw

    @property
    def running(self) -> bool:
        return self.status == "running"


@dataclass
class Schedule:
    """The number of steps in a task, and the steps after which a member is evaluated."""

    steps_per_epoch: int
    interval: int
    total: int

    @staticmethod
    def of(protocol: Protocol, steps_per_epoch: int) -> Schedule:
        total = max(1, round(protocol.max_epochs * steps_per_epoch))
        total = min(total, protocol.max_steps or total)
        return Schedule(steps_per_epoch, max(1, round(protocol.evaluate_every * steps_per_epoch)), total)

    def next_evaluation(self, step: int) -> int:
        """Return the step count at the first evaluation after `step` steps."""
        return min((step // self.interval + 1) * self.interval, self.total)


@dataclass
class Stopper:
    """Early stopping of one member in one task.

    With `patience`, the best weights are kept, and the task ends after that many evaluations in a row without a lower
    loss (Prechelt 1998). With `target`, the task ends at the first loss at or below the target, with the weights of
    that evaluation. With neither, the task ends at its last step with the last weights.
    """

    patience: int | None
    target: float | None = None
    best_loss: float = math.inf
    best_row: Tensor | None = None
    best_raw: Tensor | None = None
    """The training weights if `best_row` is an average."""
    waited: int = 0

    @staticmethod
    def of(protocol: Protocol) -> Stopper:
        early = protocol.early_stopping
        return Stopper(None if early is None else early.patience, None if early is None else early.target)

    def see(self, loss: float, row: Tensor, raw: Tensor | None = None) -> bool:
        """Record the loss at weights `row`; return whether to stop. raw: training weights, if `row` is an average."""
        if self.target is not None:
            return loss <= self.target
        if self.patience is None:
            return False
        if loss < self.best_loss:
            self.best_loss, self.best_row, self.best_raw, self.waited = loss, row.clone(), raw, 0
            return False
        self.waited += 1
        return self.waited >= self.patience
