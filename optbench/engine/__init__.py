"""Lock-step training: cohorts in, results out."""

from __future__ import annotations

from optbench.engine.members import Notify, Progress, TrialResult
from optbench.engine.train import Workspace, train

__all__ = ["Notify", "Progress", "TrialResult", "Workspace", "train"]
