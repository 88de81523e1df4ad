"""What a suite asks to be trained: trials, and the cohorts they are trained in."""

from __future__ import annotations

from optbench.plan.cost import expected_cost, task_count
from optbench.plan.trials import Cohort, Trial, cohorts, complete, trials

__all__ = ["Cohort", "Trial", "cohorts", "complete", "expected_cost", "task_count", "trials"]
