"""A suite's claims: statements made before the data are seen, then judged by the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from optbench.suite.fields import MetricName, Name, Settings
from optbench.suite.matching import Matching
from optbench.suite.readings import ReadingCell, Readings
from optbench.suite.sides import Side, SideOrNumber, arms_of, split_arm


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

    The claim covers each of its `models`. A swept optimizer named without a variant stands for all of its variants.
    """

    text: str = ""
    """The statement in words."""
    source: str = ""
    """The source of the statement, such as `arXiv:2507.12224, Figure 3 left`."""
    experiment: Name
    """The experiment whose results decide the verdict."""
    models: Annotated[list[Name], Field(min_length=1)] | None = None
    """The models covered; null: every model of the experiment."""
    metric: MetricName | None = None
    """The metric that gives the verdict; null: the primary reading gives it."""
    readings: Readings | None = None
    """Several readings instead of a single metric; the primary one gives the verdict. null: only `metric`."""
    left: Side
    """An optimizer, or one of its variants: `adam lr=0.001`. For a metric of the experiment's `pairs`, the two
    optimizers whose solutions are compared: `[adam, sgd]`; `[adam, adam]` stands for the null, training from the
    same start with another data order."""
    right: SideOrNumber
    """Like `left`, or a number."""
    expect: Literal["higher", "lower", "equivalent"]
    """`higher`, `lower`, or `equivalent` (any difference is smaller than the margin)."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """The smallest relevant difference, in the metric's unit; null: the metric's default margin."""
    where: dict[MetricName, Bounds] = Field(default={})
    """Bounds by metric: the claim is restricted to variants whose means over seeds lie within all of the bounds."""
    matched: Matching | None = None
    """How variants are matched; null: every variant of one side is compared with every variant of the other."""
    given: list[Name] = Field(default=[])
    """Claims on which this one depends; a report says if one of them is not supported."""
    beside: list[MetricName] = Field(default=[])
    """Metrics shown next to the verdict as context."""

    @model_validator(mode="after")
    def _one_subject(self) -> Claim:
        if self.metric is not None and self.readings is not None:
            raise ValueError(
                "'readings': expected either 'readings' or 'metric', got both; the 'primary' reading gives the verdict"
            )
        if self.metric is None and self.readings is None:
            raise ValueError("expected the key 'metric' or 'readings'")
        return self

    @model_validator(mode="after")
    def _can_be_equivalent(self) -> Claim:
        if self.expect == "equivalent" and self.margin == 0:
            raise ValueError("'margin': expected a number above 0 with expect: equivalent, got 0")
        return self

    @model_validator(mode="after")
    def _can_be_matched(self) -> Claim:
        if self.matched is not None and isinstance(self.right, float):
            raise ValueError(f"'matched': expected an optimizer on the right, got {self.right:g}")
        cells = self.readings.cells if self.readings is not None else ()
        if self.matched is not None and self.matched.on in (self.metric, *(cell.metric for cell in cells)):
            raise ValueError(f"'matched': expected a metric other than the claim's, got {self.matched.on}")
        return self

    @model_validator(mode="after")
    def _can_be_about_pairs(self) -> Claim:
        if isinstance(self.right, float) or isinstance(self.left, str) == isinstance(self.right, str):
            if self.about_pairs and (key := next((k for k in ("matched", "readings") if getattr(self, k)), None)):
                raise ValueError(f"'{key}' cannot be combined with a claim about the solutions of two optimizers")
            return self
        expected = "one optimizer" if isinstance(self.left, str) else "two optimizers, or a number"
        raise ValueError(f"'right': expected {expected}, as on the left, got {self.right}")

    @property
    def about_pairs(self) -> bool:
        """True if the claim is about pairs of solutions, with a metric of two solutions, rather than about trials."""
        return isinstance(self.left, list)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms (optimizers, or variants of them) named on the two sides of the claim."""
        return (*arms_of(self.left), *arms_of(self.right))

    @property
    def optimizers(self) -> tuple[str, ...]:
        """The optimizers named on the two sides of the claim."""
        return tuple(split_arm(arm)[0] for arm in self.arms)

    @property
    def primary(self) -> ReadingCell:
        """The reading that gives the verdict."""
        if self.readings is not None:
            return self.readings.primary_cell
        assert self.metric is not None, "ensured by the validator"
        return ReadingCell(self.metric, "", "pooled", self.metric)
