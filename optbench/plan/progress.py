"""The progress of a trial, reported to the views of a run. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The progress of one trial, sent after every measurement."""

    trial: str
    task: int
    """The current task, 1..T."""
    fraction: float
    """Fraction of all tasks done, 0..1; a task that stops early jumps to its end."""
    accuracy: float | None
    """Accuracy on the current task, on the examples of evaluations during training."""
    status: str
