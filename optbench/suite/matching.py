"""Claims at matched accuracy: which variants of two optimizers are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optbench.suite.fields import Settings


class Matching(Settings):
    """The rule that matches each variant of the side with fewer variants to the nearest variant of the other side.

    The distance is the absolute difference between the means of the metric `on` over seeds, always measured on
    validation data. The claim's metric, measured on test data, does not affect the choice.
    """

    on: Literal["learning_accuracy", "average_accuracy", "last_task_accuracy", "earlier_tasks_accuracy"]
    """The metric by which variants are matched."""
    within: Annotated[float, Field(gt=0)]
    """The maximum distance. Variants further apart are not matched: they are listed, but are not part of the claim."""
