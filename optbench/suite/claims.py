"""Claims of a suite: statements made before the data are seen, and then judged by the data."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from optbench.suite.fields import METRIC_PATTERN, ArmName, MetricName, Name, Settings
from optbench.suite.matching import Matching
from optbench.suite.readings import ReadingCell, Readings


def _arm_or_number(value: Any) -> str | float:
    # Not a union of types, for which pydantic would report one fault per type.
    if isinstance(value, str) and re.fullmatch(METRIC_PATTERN, value) and len(value) <= 400:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError(f"expected the name of an optimizer, or a number, got {value!r}")


ArmOrNumber = Annotated[Any, AfterValidator(_arm_or_number)]


def split_arm(side: str) -> tuple[str, str | None]:
    """Split one side of a claim into an optimizer and its variant; None stands for every variant."""
    optimizer, _, variant = side.partition(" ")
    return optimizer, variant or None


def covers(side: str | float, optimizer: str, variant: str) -> bool:
    """Return whether one side of a claim covers this variant."""
    return isinstance(side, str) and split_arm(side) in ((optimizer, variant), (optimizer, None))


class Bounds(Settings):
    """An open interval for a mean: `{above: 0.9}`, `{below: 0.1}`, or both."""

    above: float | None = None
    """The mean must be greater than this."""
    below: float | None = None
    """The mean must be smaller than this."""

    @model_validator(mode="after")
    def _not_empty(self) -> Bounds:
        if self.above is None and self.below is None:
            raise ValueError("expected 'above', 'below' or both, as in {above: 0.9}")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(f"no value lies above {self.above:g} and below {self.below:g}")
        return self


class Claim(Settings):
    """A statement made before the data are seen: `left` is higher than, lower than or equivalent to `right`.

    It covers each of the models, and every variant of a swept optimizer that is named without one.
    """

    text: str = ""
    """In words."""
    source: str = ""
    """Where the statement comes from: `arXiv:2507.12224, Figure 3 left`."""
    experiment: Name
    """The experiment whose results judge it."""
    models: Annotated[list[Name], Field(min_length=1)] | None = None
    """The models that it covers; null: every model of the experiment."""
    metric: MetricName | None = None
    """The metric of the verdict; null: the primary reading."""
    readings: Readings | None = None
    """Instead of a metric: every reading of the claim, one of which gives the verdict; null: the metric alone."""
    left: ArmName
    """An optimizer, or one of its variants: `adam lr=0.001`."""
    right: ArmOrNumber
    """An optimizer, one of its variants, or a number."""
    expect: Literal["higher", "lower", "equivalent"]
    """`higher`, `lower`, or `equivalent`: any difference is smaller than the margin."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """The smallest relevant difference, in the metric's unit; null: the metric's default margin."""
    where: dict[MetricName, Bounds] = Field(default={})
    """Metric -> bounds: restricts the claim to variants whose mean over seeds lies within all of them."""
    matched: Matching | None = None
    """Which variants are compared; null: every pair of one from each side."""
    given: list[Name] = Field(default=[])
    """Claims on which this one depends; a report says if one of them is not supported."""
    beside: list[MetricName] = Field(default=[])
    """Metrics shown next to it, as context for the verdict."""

    @model_validator(mode="after")
    def _one_subject(self) -> Claim:
        if self.metric is not None and self.readings is not None:
            raise ValueError(
                "'readings': expected it or 'metric', got both; the verdict is about the 'primary' reading"
            )
        if self.metric is None and self.readings is None:
            raise ValueError("expected the key 'metric', or 'readings'")
        return self

    @model_validator(mode="after")
    def _can_be_equivalent(self) -> Claim:
        if self.expect == "equivalent" and self.margin == 0:
            raise ValueError("'margin': expected a number above 0 with expect: equivalent, got 0")
        return self

    @model_validator(mode="after")
    def _can_be_matched(self) -> Claim:
        if self.matched is not None and not isinstance(self.right, str):
            raise ValueError(f"'matched': expected an optimizer on the right, got {self.right:g}")
        cells = self.readings.cells if self.readings is not None else ()
        if self.matched is not None and self.matched.on in (self.metric, *(cell.metric for cell in cells)):
            raise ValueError(f"'matched': expected another metric than that of the claim, got {self.matched.on}")
        return self

    @property
    def optimizers(self) -> tuple[str, ...]:
        """The optimizers named by its sides."""
        return tuple(split_arm(side)[0] for side in (self.left, self.right) if isinstance(side, str))

    @property
    def primary(self) -> ReadingCell:
        """The metric of the verdict."""
        if self.readings is not None:
            return self.readings.primary_cell
        assert self.metric is not None, "ensured by the validator"
        return ReadingCell(self.metric, "", "pooled", self.metric)
