"""The training of cohorts of trials in lock-step, from initial weights to the trials' results."""

from __future__ import annotations

from optbench.engine.members import Notify, TrialResult
from optbench.engine.train import train
from optbench.engine.workspace import Workspace
from optbench.plan.progress import Progress

__all__ = ["Notify", "Progress", "TrialResult", "Workspace", "train"]
