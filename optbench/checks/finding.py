"""Findings of checks, and running checks that depend on one another. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from optbench.errors import OptbenchError
from optbench.targets import said

Outcome = Literal["passed", "failed", "information", "skipped"]
"""`information` cannot fail; `skipped` gives the reason."""
Found = tuple[Outcome, str]
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """One line of the report: the check, its outcome, and a description."""

    name: str
    outcome: Outcome
    text: str


def lines(subject: Subject, checks: Sequence[tuple[str, Callable[[Subject], Found]]]) -> Iterator[Finding]:
    """Run checks in order; after a failure, the others are skipped.

    An exception of a user's code is a finding.
    """
    broken = None
    for name, look in checks:
        if broken is not None:
            yield Finding(name, "skipped", f"not checked: '{broken}' comes first")
            continue
        try:
            outcome, text = look(subject)
        except OptbenchError as error:
            outcome, text = "failed", " ".join(str(error).split())
        except Exception as error:
            outcome, text = "failed", f"it raised {said(error)}"
        yield Finding(name, outcome, text)
        broken = name if outcome == "failed" else None
