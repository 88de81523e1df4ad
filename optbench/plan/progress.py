"""How far a trial is, as whoever watches a run is told; needs no torch, as those who pass it on have none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far one trial is; sent whenever something was measured."""

    trial: str
    task: int
    """1..T, the task in training."""
    fraction: float
    """Of all tasks, 0..1; a task that stops early jumps to its end."""
    accuracy: float | None
    """On the current task, of the examples that evaluations during training use."""
    status: str
