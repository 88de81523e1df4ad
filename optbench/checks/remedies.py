"""Search for a missing declaration, such as `needs`, that would make a user's optimizer train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optbench.checks.problem import Problem
from optbench.optimizers.spec import NEEDS
from optbench.store.tables import TrialRow

WORDS = ("closure", "loss", "create_graph", "no-modes", "closure create_graph")
SEED = 0


def what_works(problem: Problem) -> str:
    """Return a suggestion to append to a message, such as `; --set needs=closure works`.

    The suggestion is empty if no declaration helps, or if the optimizer is not user-defined.
    """
    if problem.spec.source != "yours":
        return ""
    for shown, settings in _declarations(problem):
        if _trains(problem, settings):
            return f"; --set {shown} works"
    return ""


def _declarations(problem: Problem) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each declaration that could be missing, both as an argument to `--set` and as settings."""
    given = str(problem.given.get("needs") or "")
    for words in WORDS:
        missing = [word for word in words.split() if word not in problem.spec.needs]
        if missing == words.split() and all(word in NEEDS for word in missing):
            needs = " ".join([*given.split(), *missing])
            yield (f"needs={needs}" if " " not in needs else f"'needs={needs}'"), {"needs": needs}
    if not problem.spec.only_matrices:
        yield "only_matrices=true", {"only_matrices": True}


def _trains(problem: Problem, settings: dict[str, Any]) -> bool:
    """Return whether the optimizer lowers the loss with these settings."""
    try:
        changed = problem.with_settings(settings)
        (result,) = changed.train([changed.trial(SEED)])
    except Exception:  # a user's optimizer may raise anything
        return False
    row = next(row for row in result.rows if isinstance(row, TrialRow))
    return (
        row.status == "ok"
        and result.weights is not None
        and changed.loss(result.weights) < changed.loss(changed.start(SEED))
    )
