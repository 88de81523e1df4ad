"""What a check has found, and how lines that build on one another are gone through. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from optbench.errors import OptbenchError
from optbench.targets import said

Outcome = Literal["passed", "failed", "information", "skipped"]
"""`information` cannot fail; `skipped` says why nothing could be found out."""
Found = tuple[Outcome, str]
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """One line of the answer: which check, how it ended, and in words what was seen."""

    name: str
    outcome: Outcome
    text: str


def lines(subject: Subject, checks: Sequence[tuple[str, Callable[[Subject], Found]]]) -> Iterator[Finding]:
    """Look at a subject check by check; after one that fails, the others are not tried.

    Whatever a user's code raises is what the check has found.
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
