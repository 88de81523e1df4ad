"""Checks of the contracts of optimizers, models, datasets, task sequences and metrics.

Importing this package does not import torch; running a check does. Each kind has a file with
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
    """Check a target of the given kind, yielding the finding for each line of its contract as soon as it is known.

    Raises:
        OptbenchError: the target cannot be loaded, or rejects its settings.
    """
    found: Iterator[Finding] = importlib.import_module(CHECKERS[kind]).findings(target, settings)
    return found
