"""Users' own metrics: the decorator that marks a function as one, and how a run describes them.

A run's record says of each what a reader needs, so that reports and comparisons execute nobody's code. No torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from optbench.metrics.catalog import METRICS, Direction, Kind, Metric

Of = Literal["features", "weights", "logits", "accuracy", "model"]
Function = TypeVar("Function", bound=Callable[..., Any])

KEY = "metrics"
"""Of `run.json`: the descriptions of users' metrics."""
MARK = "__optbench_metric__"
_KINDS: Mapping[str, Kind] = MappingProxyType({**{of: of for of in get_args(Of)}, "accuracy": "continual"})
_OF = {kind: of for of, kind in _KINDS.items()}


@dataclasses.dataclass(frozen=True)
class Description:
    """What `metric` was told."""

    of: Of
    direction: Direction
    unit: str
    margin: float
    formula: str


def metric(
    *, of: Of, direction: Direction = "neutral", unit: str = "", margin: float = 0.0, formula: str = ""
) -> Callable[[Function], Function]:
    """Mark a function as a metric: it takes tensors of one trial and returns one number; NaN means undefined.

    Args:
        of: what the function takes. Tensors are float64, and copies; targets (N,) follow where it has a second
            parameter without a default.

            - `features`: the input of the last linear layer on test data (N, d)
            - `logits`: (N, C)
            - `weights`: a mapping from layer names to weight tensors, of two or more axes. It is called with each layer
              alone and with all of them, which gives the trial's value.
            - `accuracy`: the accuracy matrix (T+1, T) as a NumPy array, row 0 before any training
            - `model`: the trained network in eval mode, then the test inputs and targets of one task as the network
              takes them. The trial's value is the mean over its tasks.
        direction: which values are better; a `neutral` metric is higher or lower, never better.
        unit: shown next to the name.
        margin: the smallest difference worth a verdict, in the metric's unit; 0: none, and nothing is equivalent.
        formula: shown in reports; by default the first line of the docstring.

    Raises:
        ValueError: an argument is not one of these.
    """
    for name, value, valid in (("of", of, get_args(Of)), ("direction", direction, get_args(Direction))):
        if value not in valid:
            raise ValueError(f"{name}: expected one of {', '.join(valid)}, got {value!r}")
    for name, text in (("unit", unit), ("formula", formula)):
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected text, got {text!r}")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < math.inf:
        raise ValueError(f"margin: expected a finite number of at least 0, got {margin!r}")

    def mark(function: Function) -> Function:
        said = formula or next(iter((function.__doc__ or "").strip().splitlines()), "")
        setattr(function, MARK, Description(of, direction, unit, float(margin), said))
        return function

    return mark


def is_own(name: str) -> bool:
    """Return whether a suite's entry is a target rather than a registered name."""
    return ":" in name


def name_of(target: str) -> str:
    """Return what the metric behind a target is called: its attribute."""
    return target.rpartition(":")[2]


def described(target: str, found: Description, source_hash: str | None = None) -> Metric:
    """Return a user's metric as the catalog has its own."""
    return Metric(
        name_of(target),
        _KINDS[found.of],
        None,
        found.formula,
        "yours",
        found.direction,
        found.margin,
        default=False,
        unit=found.unit,
        target=target,
        source_hash=source_hash,
    )


def metric_record(metric: Metric) -> dict[str, Any]:
    """Return what `run.json` says of a user's metric."""
    found = {name: getattr(metric, name) for name in ("name", "target", "direction", "unit", "margin", "formula")}
    return {**found, "of": _OF[metric.kind], "source_hash": metric.source_hash}


def from_record(record: Mapping[str, Any]) -> Metric:
    """Return the metric that `metric_record` describes.

    Raises:
        ValueError: it describes none.
    """
    texts = ("name", "target", "of", "direction", "unit", "formula")
    margin, source = record.get("margin"), record.get("source_hash")
    if not all(isinstance(record.get(key), str) for key in texts) or not isinstance(source, str | None):
        raise ValueError("expected texts")
    if record["name"] != name_of(record["target"]) or record["name"] in METRICS:
        raise ValueError("expected a name of its own")
    metric(**{key: record[key] for key in ("of", "direction", "unit", "margin", "formula")})  # for its checks
    assert isinstance(margin, int | float)
    found = Description(record["of"], record["direction"], record["unit"], float(margin), record["formula"])
    return described(record["target"], found, source)


def is_metric_record(value: Any) -> bool:
    """Return whether a value is what `metric_record` makes."""
    try:
        return bool(from_record(value))
    except (ValueError, TypeError, AttributeError):
        return False


def metrics_of(record: Mapping[str, Any]) -> Mapping[str, Metric]:
    """Return every metric that a run knows by name: those of the catalog, and its users'.

    record: `run.json`, whose fields have been checked.
    """
    own = map(from_record, record.get(KEY) or ())
    return MappingProxyType({**METRICS, **{metric.name: metric for metric in own}})
