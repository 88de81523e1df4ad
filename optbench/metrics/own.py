"""Users' own metrics: the decorator that marks a function as one, and how a run describes them.

A run's record says of each what a reader needs, so that reports and comparisons execute no user's code. No torch.
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
from optbench.metrics.catalog import DEFAULT, METRICS, Direction, Metric, check_metric, check_name, is_own, select

Of = Literal["features", "logits", "weights", "accuracy", "model"]
Function = TypeVar("Function", bound=Callable[..., Any])

KEY = "metrics"
"""Of `run.json`: the descriptions of users' metrics."""
RAISED = "raised"
"""How the note of a value begins where the function of a user's metric raised something."""
MARK = "__optbench_metric__"
_READS: Mapping[Of, tuple[str, ...]] = {
    "features": ("features", "targets"),
    "logits": ("logits", "targets"),
    "weights": ("weights",),
    "accuracy": ("accuracy",),
    "model": ("model", "inputs", "targets"),
}
_RECORDED = ("direction", "unit", "margin", "formula")


def metric(
    *, of: Of, direction: Direction = "neutral", unit: str = "", margin: float = 0.0, formula: str = ""
) -> Callable[[Function], Function]:
    """Mark a function as a metric: it takes tensors of one trial and returns one number; NaN means undefined.

    Args:
        of: what the function takes. Tensors are float64, and copies; targets (N,) follow features and logits where it
            has a second parameter without a default.

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
        kind = "continual" if of == "accuracy" else of
        found = Metric("", said, "yours", direction, float(margin), kind=kind, default=False, unit=unit)
        setattr(function, MARK, dataclasses.replace(found, reads=_READS[of]))
        return function

    return mark


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
    if not isinstance(found, Metric):
        got = "a function without it" if inspect.isfunction(function) else f"a value of type {type(function).__name__}"
        raise UsageError(f"{target}: expected a function marked with @optbench.metric, got {got}")
    reads, source = _taken(target, function, found.reads), targets.source_hash([target])
    return dataclasses.replace(found, name=check_name(target), target=target, source_hash=source, reads=reads)


def _taken(target: str, function: Callable[..., Any], reads: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a function takes of what it may.

    Raises:
        UsageError: its signature cannot be read, or does not allow it.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError) as error:
        raise UsageError(f"{target}: its arguments cannot be read: {targets.said(error)}") from error
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    fewest = 1 if len(reads) == 2 else len(reads)
    if any(p.kind is p.KEYWORD_ONLY for p in needed) or not fewest <= len(needed) <= len(reads):
        form = f"({', '.join(reads)})" + (f" or ({reads[0]})" if fewest < len(reads) else "")
        raise UsageError(f"{target}: expected a function of {form}, got ({', '.join(p.name for p in parameters)})")
    return reads[: len(needed)]


def check_loaded(name: str) -> None:
    """As `check_metric`, which executes no user's code; this imports a target.

    Raises:
        UsageError: as `check_metric` or `load_metric`.
    """
    (load_metric if is_own(name) else check_metric)(name)


def resolve(entries: Iterable[str] | None) -> tuple[Metric, ...]:
    """Return the metrics that a suite's list means, each once; None: the default set.

    Raises:
        UsageError: there is no such metric, or as `load_metric`.
    """
    found: dict[str, Metric] = {}
    for entry in (DEFAULT,) if entries is None else entries:
        for one in [load_metric(entry)] if is_own(entry) else select(None if entry == DEFAULT else [entry]):
            found.setdefault(one.name, one)
    return tuple(found.values())


def metric_record(found: Metric) -> dict[str, Any]:
    """Return what `run.json` says of a user's metric."""
    of = "accuracy" if found.kind == "continual" else found.kind
    about = {name: getattr(found, name) for name in _RECORDED}
    return {"name": found.name, "target": found.target, "of": of, **about, "source_hash": found.source_hash}


def from_record(record: Mapping[str, Any]) -> Metric:
    """Return the metric that `metric_record` describes.

    Raises:
        ValueError: it describes none.
    """
    name, target, source = (record.get(key) for key in ("name", "target", "source_hash"))
    if not (isinstance(name, str) and isinstance(target, str) and isinstance(source, str | None)):
        raise ValueError("expected texts")
    marked = metric(**{key: record.get(key) for key in ("of", *_RECORDED)})(lambda: None)  # type: ignore[arg-type]
    found: Metric = getattr(marked, MARK)
    return dataclasses.replace(found, name=name, target=target, source_hash=source)


def is_metric_record(value: Any) -> bool:
    """Return whether a value is what `metric_record` makes."""
    try:
        return from_record(value).target is not None
    except (ValueError, TypeError, AttributeError):
        return False


def metrics_of(record: Mapping[str, Any]) -> Mapping[str, Metric]:
    """Return every metric that a run knows by name: those of the catalog, and its users'.

    record: `run.json`, whose fields have been checked.
    """
    own = map(from_record, record.get(KEY) or ())
    return MappingProxyType({**METRICS, **{metric.name: metric for metric in own}})
