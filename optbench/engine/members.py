"""What the engine keeps of each trial while its cohort trains, and what it hands over at the end."""

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
    """Everything one trial found: its rows, and its final weights unless it diverged or failed."""

    trial: Trial
    rows: tuple[Row, ...]
    weights: dict[str, Tensor] | None


@dataclass
class Member:
    """One training, and all trials that it is: they differ in nothing but names."""

    trials: tuple[Trial, ...]
    row: Tensor
    """Weights and buffers (P + Q,), up to date whenever the member is not in a stack; averages of weights where the
    protocol has these measured."""
    init_hash: str
    generator: torch.Generator
    """For an optimizer that draws random numbers: the trial's own."""
    state: MemberState = None
    raw: Tensor | None = None
    """Weights and buffers (P + Q,) that training continues from, once `row` is an average of them."""
    status: str = "running"
    failure: tuple[str, str] | None = None
    """Type and message of what its optimizer or its model raised."""
    last_step: int = 0
    steps: int = 0
    train_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    optimizer_state_bytes: int = 0
    fallbacks: int = 0
    gradients: str | None = None
    """How they were taken last, as `Gradients.way` has it; None before the first step."""
    rows: list[Row] = field(default_factory=list)
    ended: list[Tensor] = field(default_factory=list)
    """Weights and buffers (P + Q,) after each task so far, where a measure of the overlap of tasks asks for them."""
    unkept: str | None = None
    """Why its optimizer's state cannot be kept between tasks, once that is known."""
    follower: Verification | None = None
    """What takes its next steps after it."""
    validated: Score | None = None
    """The score of `row` on the validation data of the task it has just ended, where that is known."""
    start: Tensor = field(init=False)
    """The initial weights and buffers (P + Q,): the first `row`, which is replaced but never written to. Those of a
    network that is made anew for each task are those of the task."""

    def __post_init__(self) -> None:
        self.start = self.row

    @property
    def trial(self) -> Trial:
        """Any of its trials: the first."""
        return self.trials[0]

    def fail(self, error: Exception) -> None:
        """Note what its model raised."""
        self.status, self.failure = "failed", (type(error).__name__, spoken(error))

    @property
    def trained(self) -> Tensor:
        """Weights and buffers (P + Q,) that training continues from."""
        return self.row if self.raw is None else self.raw

    @property
    def running(self) -> bool:
        return self.status == "running"


@dataclass
class Schedule:
    """When a member is evaluated and when its task ends, in steps of this task; the same for it in any company."""

    steps_per_epoch: int
    interval: int
    total: int

    @staticmethod
    def of(protocol: Protocol, steps_per_epoch: int) -> Schedule:
        total = max(1, round(protocol.max_epochs * steps_per_epoch))
        total = min(total, protocol.max_steps or total)
        return Schedule(steps_per_epoch, max(1, round(protocol.evaluate_every * steps_per_epoch)), total)

    def next_evaluation(self, step: int) -> int:
        """The first step after `step` at which there is something to measure."""
        return min((step // self.interval + 1) * self.interval, self.total)


@dataclass
class Stopper:
    """Early stopping of one member in one task.

    With patience it remembers the best weights and counts evaluations without progress.

    Prechelt 1998 with patience counted in evaluations. With a target the first loss at or below it ends the task, and
    the weights of that evaluation are kept. With neither, the task ends at its last step with the last weights.
    """

    patience: int | None
    target: float | None = None
    best_loss: float = math.inf
    best_row: Tensor | None = None
    best_raw: Tensor | None = None
    """What was in training where `best_row` is an average."""
    waited: int = 0

    @staticmethod
    def of(protocol: Protocol) -> Stopper:
        early = protocol.early_stopping
        return Stopper(None if early is None else early.patience, None if early is None else early.target)

    def see(self, loss: float, row: Tensor, raw: Tensor | None = None) -> bool:
        """Record a loss and the weights it was measured at; True to stop now. raw: what `row` is an average of."""
        if self.target is not None:
            return loss <= self.target
        if self.patience is None:
            return False
        if loss < self.best_loss:
            self.best_loss, self.best_row, self.best_raw, self.waited = loss, row.clone(), raw, 0
            return False
        self.waited += 1
        return self.waited >= self.patience
