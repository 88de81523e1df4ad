"""Users' own metrics: the decorator that marks a function as one, and how a run describes them.

A run's record says of each what a reader needs, so that reports and comparisons execute nobody's code. No torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from optbench import targets
from optbench.errors import UsageError
from optbench.metrics.catalog import (
    DEFAULT,
    METRICS,
    Direction,
    Kind,
    Metric,
    check_metric,
    check_name,
    is_own,
    name_of,
    select,
)

Of = Literal["features", "weights", "logits", "accuracy", "model"]
Function = TypeVar("Function", bound=Callable[..., Any])

KEY = "metrics"
"""Of `run.json`: the descriptions of users' metrics."""
RAISED = "raised"
"""How the note of a value begins where the function of a user's metric raised something."""
MARK = "__optbench_metric__"
_KINDS: Mapping[str, Kind] = MappingProxyType({**{of: of for of in get_args(Of)}, "accuracy": "continual"})
_OF = {kind: of for of, kind in _KINDS.items()}
_READS: Mapping[Of, tuple[str, ...]] = MappingProxyType(
    {
        "features": ("features", "targets"),
        "logits": ("logits", "targets"),
        "weights": ("weights",),
        "accuracy": ("accuracy",),
        "model": ("model", "inputs", "targets"),
    }
)
"""What functions take; targets of features and logits need not be taken."""


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


def described(target: str, found: Description, source_hash: str | None = None) -> Metric:
    """Return a user's metric as the catalog has its own."""
    return Metric(
        name_of(target),
        found.formula,
        "yours",
        found.direction,
        found.margin,
        kind=_KINDS[found.of],
        default=False,
        unit=found.unit,
        target=target,
        source_hash=source_hash,
    )


def load_metric(target: str) -> Metric:
    """Return the metric behind a target; its module is executed if it has not been.

    Raises:
        UsageError: it cannot be imported, is not marked with `metric`, takes something else than its `of` gives, or has
            the name of a registered one.
    """
    try:
        function = targets.load(target)
    except targets.TargetError as error:
        raise UsageError(*error.args) from error.__cause__
    found = getattr(function, MARK, None)
    if not isinstance(found, Description):
        got = "a class" if inspect.isclass(function) else f"a value of type {type(function).__name__}"
        got = "a function without it" if inspect.isfunction(function) else got
        raise UsageError(f"{target}: expected a function marked with @optbench.metric, got {got}")
    check_name(target)
    own = described(target, found, targets.source_hash([target]))
    return dataclasses.replace(own, reads=_taken(target, function, found.of))


def _taken(target: str, function: Callable[..., Any], of: Of) -> tuple[str, ...]:
    """Return what a function takes by position.

    Raises:
        UsageError: its signature cannot be read, or does not allow it.
    """
    reads = _READS[of]
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError) as error:
        raise UsageError(f"{target}: its arguments cannot be read: {targets.said(error)}") from error
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    fewest = 1 if of in ("features", "logits") else len(reads)
    if any(p.kind is p.KEYWORD_ONLY for p in needed) or not fewest <= len(needed) <= len(reads):
        form = f"({', '.join(reads)})" + (f" or ({reads[0]})" if fewest < len(reads) else "")
        raise UsageError(f"{target}: expected a function of {form}, got ({', '.join(p.name for p in parameters)})")
    return reads[: len(needed)]


def check_loaded(name: str) -> None:
    """As `check_metric`, which executes no user's code; this imports a target.

    Raises:
        UsageError: as `check_metric` or `load_metric`.
    """
    if is_own(name):
        load_metric(name)
    else:
        check_metric(name)


def resolve(entries: Iterable[str] | None) -> tuple[Metric, ...]:
    """Return the metrics that a suite's list means, each once; None: the default set.

    Raises:
        UsageError: there is no such metric, or as `load_metric`.
    """
    found: dict[str, Metric] = {}
    for entry in (DEFAULT,) if entries is None else entries:
        more = [load_metric(entry)] if is_own(entry) else select(None if entry == DEFAULT else [entry])
        for one in more:
            found.setdefault(one.name, one)
    return tuple(found.values())


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
