"""The plan of a run: a suite's trials, the cohorts into which they are grouped, and their estimated cost."""

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
