"""Field types shared by several parts of a suite: names, lists without duplicates, and strict settings."""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from optbench.metrics.metric import base_name
from optbench.metrics.own import MetricSettings

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
# Names are used in file names (checkpoints, run ids), so they have no separators and no leading dot.
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]
METRIC_PATTERN = NAME_PATTERN.removesuffix("$") + "( .+)?$"
MetricName = Annotated[str, Field(pattern=METRIC_PATTERN, max_length=400)]
"""The name of a metric, e.g. `margin`, or `margin power=2` with settings."""


class Settings(BaseModel):
    # Strict, because `batch_size: true` or `max_epochs: "5"` is a mistake.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


# A hyper-parameter becomes a keyword argument and part of a variant's name.
HYPERPARAMETER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
HyperparameterName = Annotated[str, Field(pattern=HYPERPARAMETER_PATTERN, max_length=80)]
Text = Annotated[str, Field(min_length=1, max_length=400)]


OffByFalse = BeforeValidator(lambda value: None if value is False else value)
"""A validator that converts `false` to null, for settings that null disables."""


def without_nulls(value: Any, *keys: str) -> Any:
    """Remove from a mapping those of `keys` whose value is null, so that null removes a value of the suite's base."""
    if not isinstance(value, dict):
        return value
    return {key: given for key, given in value.items() if given is not None or key not in keys}


def listed_once(what: str, items: list[Any]) -> list[Any]:
    twice = [item for item, count in Counter(items).items() if count > 1]
    if twice:
        raise ValueError(f"the {what} {twice[0]!r} is listed twice")
    return items


def once(what: str) -> AfterValidator:
    """Return a validator that rejects lists with duplicates. what: a noun for an item, for the message."""
    return AfterValidator(functools.partial(listed_once, what))


def distinct_metrics(entries: list[MetricSettings]) -> list[MetricSettings]:
    listed_once("metric", [entry.kind + entry.name.removeprefix(base_name(entry.name)) for entry in entries])
    return entries


def is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None
