"""What optbench asks of an optimizer before its results can be believed, tried on a small problem.

Importing this package imports torch.
"""

from __future__ import annotations

from optbench.checks.contract import CHECKS, check
from optbench.checks.finding import Finding, Outcome
from optbench.checks.problem import SMALL, Problem, Size

__all__ = ["CHECKS", "SMALL", "Finding", "Outcome", "Problem", "Size", "check"]
