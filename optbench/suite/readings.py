"""The readings of a claim, by metric, layer and data; the primary reading gives the verdict."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails

from optbench.errors import unknown
from optbench.kinds import PlainValue, value_name
from optbench.metrics.catalog import DEFAULT
from optbench.metrics.own import METRIC_KINDS, MetricSettings
from optbench.suite.fields import HyperparameterName, Settings, distinct_metrics, once

Data = Literal["pooled", "last"]
"""The data of a reading. `pooled`: the test data of all tasks together; `last`: the test data of the last task."""
Layer = dict[HyperparameterName, PlainValue]
MAX_READINGS = 1000


@dataclass(frozen=True)
class ReadingCell:
    """One reading of a claim.

    metric: the metric's name as listed in the claim.
    layer: the settings from `layers` as text; empty if there are none.
    data: `pooled` or `last`.
    name: the metric's name with all of its settings, as in tables.
    """

    metric: str
    layer: str
    data: Data
    name: str


class PrimaryReading(Settings):
    """The reading that the verdict is about."""

    metric: MetricSettings
    """The metric, one of the readings' `metrics`."""
    layer: Layer = Field(default={})
    """The layer, one of the readings' `layers`."""
    data: Data = "pooled"
    """The data, one of the readings' `data`."""


class Readings(Settings):
    """The readings of a claim: one cell for each combination of metric, layer and data."""

    metrics: Annotated[list[MetricSettings], Field(min_length=1), AfterValidator(distinct_metrics)]
    """The metrics, written as in an experiment's `metrics`; they are measured even if not listed there."""
    layers: Annotated[list[Layer], Field(min_length=1)] = Field(default=[{}])
    """Settings to apply to the metrics; every metric is measured with each entry."""
    data: Annotated[list[Data], Field(min_length=1), once("data")] = Field(default=["pooled"])
    """The test data to measure on: those of all tasks together (`pooled`) or those of the last task (`last`)."""
    primary: PrimaryReading
    """The reading that the verdict is about."""
    measured: list[MetricSettings] | None = None
    """Each metric in each layer, grouped by metric. Computed when a suite is loaded, and recorded by a run, so that the
    run's reports need not import the metrics' definitions."""

    @model_validator(mode="after")
    def _resolved(self, info: ValidationInfo) -> Readings:
        if (info.context or {}).get("as_written") and self.measured is not None:
            return self
        if (number := len(self.metrics) * len(self.layers) * len(self.data)) > MAX_READINGS:
            raise ValueError(f"expected at most {MAX_READINGS} readings, got {number}")
        for i, entry in enumerate(self.metrics):
            if entry.kind == DEFAULT:
                _refuse(("metrics", i), "expected metrics by name, got 'default'")
        found = [
            in_layer(entry, layer, ("layers", j))
            for entry, (j, layer) in itertools.product(self.metrics, enumerate(self.layers))
        ]
        names = [entry.name for entry in found]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"'layers': two readings are the same: {twice}")
        self.__dict__["measured"] = found
        self.__dict__["primary"] = self._found(names)
        return self

    def _found(self, names: list[str]) -> PrimaryReading:
        """Return the primary reading with its layer written as in `layers`, so that `primary_cell` finds the layer."""
        said = self.primary
        if said.metric not in self.metrics:
            _not_among("metrics", [entry.name for entry in self.metrics], "metric", said.metric.name)
        if said.data not in self.data:
            _not_among("data", self.data, "data", said.data)
        first = self.metrics.index(said.metric) * len(self.layers)
        wanted = in_layer(said.metric, said.layer, ("primary", "layer")).name
        alike = [layer for layer, name in zip(self.layers, names[first:], strict=False) if name == wanted]
        if not alike:
            _not_among("layers", map(_written, self.layers), "layer", _written(said.layer))
        return PrimaryReading.model_construct(metric=said.metric, layer=alike[0], data=said.data)

    @property
    def cells(self) -> tuple[ReadingCell, ...]:
        """Every reading, ordered by metric, layer and data."""
        assert self.measured is not None, "set by the validator"
        pairs = itertools.product(self.metrics, self.layers)
        return tuple(
            ReadingCell(metric.name, layer_name(layer), data, measured.name)
            for (metric, layer), measured in zip(pairs, self.measured, strict=True)
            for data in self.data
        )

    @property
    def primary_cell(self) -> ReadingCell:
        """The cell of the primary reading, which gives the verdict."""
        said = self.primary
        place = self.metrics.index(said.metric) * len(self.layers) + self.layers.index(said.layer)
        return self.cells[place * len(self.data) + self.data.index(said.data)]


def in_layer(entry: MetricSettings, layer: Mapping[str, Any], place: tuple[str | int, ...]) -> MetricSettings:
    """Return a metric with the settings of a layer added. place: the location of the layer, for the message.

    Raises:
        ValidationError: the metric does not accept these settings, or already has one of them.
    """
    if not layer:
        return entry
    for key in layer:
        if key in entry.settings:
            _refuse(place, f"'{key}': {entry.name} already has a '{key}'", layer)
    try:
        return MetricSettings.of(entry.kind, **entry.settings, **layer)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = str(detail["loc"][-1]) if detail["loc"] else ""
        what = detail["msg"]
        if detail["type"] == "extra_forbidden":
            what = unknown("setting", key, METRIC_KINDS.settings(entry.kind).model_fields)
        elif key in layer:
            what = f"{key}: {what.replace('Input should be', 'expected')}, got {value_name(layer[key])}"
        _refuse(place, f"{entry.name}: {what}")


def layer_name(layer: Mapping[str, Any]) -> str:
    """Return the name of a layer, e.g. `layer 1, activation before`; empty if it has no settings."""
    return ", ".join(f"{key} {value_name(value)}" for key, value in layer.items())


def _written(layer: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value_name(value)}" for key, value in layer.items()) + "}"


def _not_among(what: str, choices: Iterable[str], key: str, given: str) -> NoReturn:
    _refuse(("primary", key), f"expected one of the {what} of these readings ({', '.join(choices)}), got {given}")


def _refuse(place: tuple[str | int, ...], message: str, value: Any = None) -> NoReturn:
    """Raise ValidationError at `place`. value: the invalid input; the message can begin with one of its keys."""
    detail = InitErrorDetails(type="value_error", loc=place, input=value, ctx={"error": ValueError(message)})
    raise ValidationError.from_exception_data("readings", [detail])
