"""Claims at matched accuracy: which variants of two optimizers are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optbench.suite.fields import Settings


class Matching(Settings):
    """Each variant of the side with fewer of them is compared with the nearest one of the other side.

    Near in the mean of `on` over the seeds, always on validation data: the metric in question, which is of test data,
    has no part in the choice.
    """

    on: Literal["learning_accuracy", "average_accuracy", "last_task_accuracy", "earlier_tasks_accuracy"]
    """The metric by which variants are matched."""
    within: Annotated[float, Field(gt=0)]
    """Variants further apart than this are no match: no part of the claim, and listed."""
