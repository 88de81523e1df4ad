"""What a check has found. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "information", "skipped"]
"""`information` cannot fail; `skipped` says why nothing could be found out."""


@dataclass(frozen=True)
class Finding:
    """One line of the answer: which check, how it ended, and in words what was seen."""

    name: str
    outcome: Outcome
    text: str
