"""Findings of checks, and a function that runs checks in order. This module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from optbench.errors import OptbenchError
from optbench.targets import said

Outcome = Literal["passed", "failed", "information", "skipped"]
"""The outcome of a check. `information` counts neither as passed nor as failed; the text of a skipped check says why
it was skipped."""
Found = tuple[Outcome, str]
Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """One line of the report: the check's name and outcome, and a description.

    scope: a limit on the verdict, e.g. `on vectors of shape (B, 20)`; empty if this finding does not limit the verdict.
    """

    name: str
    outcome: Outcome
    text: str
    scope: str = ""


def lines(subject: Subject, checks: Sequence[tuple[str, Callable[[Subject], Found]]]) -> Iterator[Finding]:
    """Run checks in order and yield their findings; after a failure, report the remaining checks as skipped.

    Exceptions raised by user code are reported as failures.
    """
    broken = None
    for name, look in checks:
        if broken is not None:
            yield Finding(name, "skipped", f"not checked, because '{broken}' failed")
            continue
        try:
            outcome, text = look(subject)
        except OptbenchError as error:
            outcome, text = "failed", " ".join(str(error).split())
        except Exception as error:
            outcome, text = "failed", f"it raised {said(error)}"
        yield Finding(name, outcome, text)
        broken = name if outcome == "failed" else None
