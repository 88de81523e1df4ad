"""Progress of a trial, as reported to the views of a run. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The progress of one trial, sent after every measurement."""

    trial: str
    task: int
    """The current task, 1..T."""
    fraction: float
    """Completed fraction of all tasks, 0..1; jumps to the end of a task that stops early."""
    accuracy: float | None
    """Accuracy on the current task, on the examples used for evaluation during training."""
    status: str
