"""Lock-step training: cohorts in, results out."""

from __future__ import annotations

from optbench.engine.members import Notify, Progress, TrialResult
from optbench.engine.train import Setting, train

__all__ = ["Notify", "Progress", "Setting", "TrialResult", "train"]
