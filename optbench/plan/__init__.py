"""Plan a run: expand a suite into trials, group the trials into cohorts and estimate their cost."""

from __future__ import annotations

from optbench.plan.cost import expected_cost, outline
from optbench.plan.fresh import FRESH, fresh_networks
from optbench.plan.paired_solutions import PairedSolutions, TrialPair, comparisons
from optbench.plan.trials import CONTROL, Cohort, Trial, cohorts, complete, trainings, trials

__all__ = [
    "CONTROL",
    "FRESH",
    "Cohort",
    "PairedSolutions",
    "Trial",
    "TrialPair",
    "cohorts",
    "comparisons",
    "complete",
    "expected_cost",
    "fresh_networks",
    "outline",
    "trainings",
    "trials",
]
