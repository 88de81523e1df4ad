"""What optbench asks of an optimizer, a model, a dataset, a task sequence or a metric before results can be believed.

Importing this package imports no torch; a check does. Each kind of thing has a file with `findings(target, settings)`.
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
    """Try a target as the kind of thing that it is; every line of its contract as soon as it is known.

    Raises:
        OptbenchError: it cannot be loaded, or does not take its settings.
    """
    found: Iterator[Finding] = importlib.import_module(CHECKERS[kind]).findings(target, settings)
    return found
