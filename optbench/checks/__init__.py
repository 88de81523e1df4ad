"""Contract checks for optimizers, models, datasets, task sequences and metrics.

Importing this package does not import torch; running a check does. Each kind has a module that provides
`findings(target, settings)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from optbench.checks.finding import Finding, Outcome
from optbench.checks.recognise import recognise

CHECKERS: Mapping[str, str] = {
    "optimizer": "optbench.checks.optimizer",
    "model": "optbench.checks.model",
    "dataset": "optbench.checks.dataset",
    "tasks": "optbench.checks.tasks",
    "metric": "optbench.checks.metric",
}

__all__ = ["CHECKERS", "Finding", "Outcome", "findings", "recognise"]


def findings(kind: str, target: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Check a target against the contract for its kind, yielding each finding as soon as it is known.

    Raises:
        OptbenchError: the target cannot be loaded, or rejects its settings.
    """
    found: Iterator[Finding] = importlib.import_module(CHECKERS[kind]).findings(target, settings)
    return found
