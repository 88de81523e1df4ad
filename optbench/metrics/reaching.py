"""Training steps until an accuracy on held-out data is reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True)
class Curve:
    """The evaluations during a task: optimizer steps, ascending, and held-out accuracies."""

    steps: Sequence[int]
    accuracies: Sequence[float | None]


@dataclass(frozen=True)
class Reached:
    """A number of steps (NaN if there are no evaluations), and a remark on this number or None."""

    value: float
    note: str | None


def steps_to_accuracy(curve: Curve, *, accuracy: Annotated[float, Field(gt=0, le=1)] = 0.95) -> Reached:
    """Return the number of steps at the first evaluation that reaches `accuracy`; the default of .95 marks grokking.

    If no evaluation reaches `accuracy`, the number of steps at the last evaluation is returned, with a note that it is
    a lower bound.
    """
    for steps, found in zip(curve.steps, curve.accuracies, strict=True):
        if found is not None and found >= accuracy:
            return Reached(steps, None)
    if not curve.steps:
        return Reached(math.nan, "no evaluations")
    return Reached(curve.steps[-1], f"an accuracy of {accuracy:g} was not reached; this is a lower bound")
