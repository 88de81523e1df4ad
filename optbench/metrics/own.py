"""Metrics named in a suite, including users' metrics and metrics with settings, and their descriptions in a run.

A run's record describes its users' metrics and metrics with settings, so that reports and comparisons do not execute
user code. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, create_model, model_validator

from optbench import targets
from optbench.errors import KindError, UsageError
from optbench.kinds import Kind, Registry, same, signature, validated, value_name
from optbench.metrics.catalog import DEFAULT, METRICS, UNSET, companions, select
from optbench.metrics.metric import Direction, Metric
from optbench.metrics.place import SETTINGS

Of = Literal["features", "logits", "weights", "accuracy", "model"]
Function = TypeVar("Function", bound=Callable[..., Any])

KEY = "metrics"
"""The key in `run.json` for descriptions of users' metrics and of metrics with settings."""
RAISED = "raised"
"""The beginning of the note on a value that is undefined because a user's metric raised an exception."""
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
    """Mark a function as a metric: a function of the data of one trial that returns a number, or NaN if undefined.

    Args:
        of: the kind of data that the function receives. All arguments are copies; features, logits and weights are in
            float64. Parameters of the function that do not receive data are settings, and must have defaults or be
            keyword-only.

            - `features`: the input (N, d) of the last linear layer on test data. If the function has a second parameter
              without a default, it also receives the targets (N,).
            - `logits`: the logits (N, C) on test data, and the targets (N,) as for `features`
            - `weights`: a mapping from layer names to weight tensors with two or more axes. The function is called once
              for each layer, and once for all layers together, which gives the trial's value.
            - `accuracy`: the accuracy matrix (T+1, T) as a NumPy array, with the accuracies before training in row 0
            - `model`: the trained network in eval mode, one task's test inputs in the form that the network takes, and
              the targets of these inputs, as three arguments. The trial's value is the mean over tasks.
        direction: which values are better; values of a `neutral` metric are called higher or lower, never better.
        unit: the unit, which is shown next to the name.
        margin: the smallest relevant difference, in the metric's unit; with 0, no values are judged equivalent.
        formula: a formula or description for reports; by default, the first line of the function's docstring.

    Raises:
        ValueError: an argument is invalid.

    Example:
        >>> import optbench
        >>> @optbench.metric(of="features", direction="lower", margin=0.01)
        ... def quiet_units(features):
        ...     return (features == 0).all(dim=0).double().mean()
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


class _Metrics(Registry):
    """The registry of metrics: functions whose first parameters are inputs and whose other parameters are settings."""

    def load(self, kind: str) -> Callable[..., Any]:
        """Load the function of a metric.

        Raises:
            KindError: as in `Registry.load`, or a user's function is not marked with `metric`, has an invalid name, or
                has the name of a registered metric.
        """
        found, name = super().load(kind), kind.rpartition(":")[2]
        if not self.is_users(kind):
            return found
        if not isinstance(getattr(found, MARK, None), Metric):
            got = "an unmarked function" if inspect.isfunction(found) else f"a value of type {type(found).__name__}"
            raise KindError(f"{kind}: expected a function marked with @optbench.metric, got {got}")
        if name in self.names:
            raise KindError(f"{kind}: '{name}' is the name of a registered metric; rename the function")
        if not name.isascii() or not name[:1].isalpha():
            raise KindError(
                f"{kind}: expected a name that starts with a letter and has only ASCII letters, digits and _, "
                f"got '{name}'"
            )
        return found

    def _settings(self, kind: str) -> type[BaseModel]:
        """Return the pydantic model of a metric's settings, including those of a place if the metric is `placed`."""
        own = super()._settings(kind)
        if kind in METRICS and METRICS[kind].placed:
            return create_model("Settings", __base__=own, **SETTINGS)
        return own

    def _given(self, kind: str, found: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Collection[str]:
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if not self.is_users(kind):
            return {*names[: len(METRICS[kind].reads)], *METRICS[kind].arguments}
        reads: tuple[str, ...] = getattr(found, MARK).reads
        needed = [p.name for p in parameters if p.name in names and p.default is p.empty]
        fewest = 1 if len(reads) == 2 else len(reads)
        if not fewest <= len(needed) <= len(reads):
            form = f"({', '.join(reads)})" + (f" or ({reads[0]})" if fewest < len(reads) else "")
            got = f"({', '.join(p.name for p in parameters)})"
            raise KindError(
                f"{kind}: expected a function of {form}, got {got}; settings need defaults, or must follow a *"
            )
        return needed

    def reads(self, kind: str) -> tuple[str, ...]:
        """Return the names of the inputs that the function of a user's metric takes."""
        found = self.load(kind)
        reads: tuple[str, ...] = getattr(found, MARK).reads
        return reads[: len(self._given(kind, found, signature(found)[0]))]

    def departures(self, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the non-default settings, which are part of a metric's name, as plain values.

        Raises:
            KindError, ValidationError: as in `complete`.
        """
        if not given and kind in self.names:
            return {}  # without importing the function
        value = validated(self.settings(kind), given)
        fields = type(value).model_fields
        changed = {
            name
            for name in value.model_fields_set
            if name not in fields or fields[name].is_required() or not same(getattr(value, name), fields[name].default)
        }
        return value.model_dump(mode="json", include=changed, warnings=False)


_FUNCTIONS = {m.name: f"optbench.metrics.{m.subject}:{m.computed_by}" for m in METRICS.values() if m.kind not in UNSET}
METRIC_KINDS = _Metrics("metric", (), {DEFAULT: "", **dict.fromkeys(METRICS, ""), **_FUNCTIONS})


class MetricSettings(Kind):
    """A metric in a suite: registered, user-defined or `default`; a bare name stands for the metric with no settings.

    Only settings that differ from their defaults are kept.
    """

    registry = METRIC_KINDS
    short = True

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return _named(value) if isinstance(value, str) else value

    @classmethod
    def _kept(cls, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return METRIC_KINDS.departures(kind, given)

    @property
    def name(self) -> str:
        """The name in tables, claims and options, e.g. `margin` or `margin power=2,scale=0.5`."""
        settings = ",".join(f"{name}={value_name(value)}" for name, value in self.settings.items())
        return f"{self.kind.rpartition(':')[2]} {settings}".rstrip()

    @property
    def in_catalog(self) -> bool:
        """True for a registered metric without settings, and for the default set."""
        return not self.is_users and not self.settings


_SETTING = re.compile(r'(\w+)=((?:\[[^\]]*\]|"(?:[^"\\]|\\.)*"|[^,\["])+)(?:,|$)')
"""One setting in a metric's name; commas in a list or in quoted text do not end it."""


def _named(name: str) -> str | dict[str, Any]:
    """Return the kind and settings in a name like `margin power=2,scale=0.5`; other names are returned unchanged."""
    kind, _, given = name.partition(" ")
    settings = dict(_SETTING.findall(given))
    if not settings or "".join(match[0] for match in _SETTING.finditer(given)) != given:
        return name
    return {"kind": kind, **{key: _plain(text) for key, text in settings.items()}}


def _plain(text: str) -> Any:
    """Return the value that `value_name` writes as `text`."""
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        return text


def resolve(entries: Iterable[MetricSettings] | None) -> tuple[Metric, ...]:
    """Return the metrics in a suite's list, without duplicates; for None, the default set.

    A metric with settings is followed by its companions with the same settings. Metrics with settings are not in the
    catalog, so a run must describe them.

    Raises:
        OptbenchError: a metric does not exist, or a user's metric cannot be loaded or no longer accepts its settings.
    """
    found: dict[str, Metric] = {}
    for entry in (MetricSettings(kind=DEFAULT),) if entries is None else entries:
        of_catalog = None if entry.kind == DEFAULT else [entry.kind]
        for one in select(of_catalog) if entry.in_catalog else _with_companions(_described(entry)):
            found.setdefault(one.name, one)
    return tuple(found.values())


def _with_companions(found: Metric) -> list[Metric]:
    return [found, *(companion for companion in companions(found) if companion.settings)]


def _described(entry: MetricSettings) -> Metric:
    settings = METRIC_KINDS.complete(entry.kind, entry.settings)
    if not entry.is_users:
        return METRICS[entry.kind].with_settings(entry.name, settings, entry.arguments)
    marked: Metric = getattr(METRIC_KINDS.load(entry.kind), MARK)
    return dataclasses.replace(
        marked,
        name=entry.name,
        target=entry.kind,
        settings=settings,
        arguments=entry.arguments,
        source_hash=targets.source_hash([entry.kind]),
        reads=METRIC_KINDS.reads(entry.kind),
    )


def check_rule(found: Metric) -> None:
    """Raise UsageError unless a metric can be used to choose settings.

    The metric must be computable without test data and from a single trial, and must have a preferred direction. Among
    the metrics of online accuracy, only mean accuracies qualify, because a learning rate that is too small to learn
    anything preserves plasticity.
    """
    if not _chooses(found):
        names = ", ".join(metric.name for metric in METRICS.values() if _chooses(metric))
        raise UsageError(f"expected a metric of accuracies ({names}, or your own), got {found.name}")
    if found.direction == "neutral":
        raise UsageError(f"expected a metric with a preferred direction, got {found.name}, which is neutral")


def _chooses(found: Metric) -> bool:
    level = found.note_arguments.get("of") == "level" and "fresh" not in found.reads
    return found.kind in ("continual", "curve") or (found.kind == "online" and level)


def metric_record(found: Metric) -> dict[str, Any]:
    """Return the description of a metric that is not in the catalog, for `run.json`."""
    settings = {"settings": dict(found.settings)} if found.settings else {}
    record = {"name": found.name, "target": found.target, **settings}
    if not found.is_users:
        return record
    of = "accuracy" if found.kind == "continual" else found.kind
    return {**record, "of": of, **{name: getattr(found, name) for name in _RECORDED}, "source_hash": found.source_hash}


def from_record(record: Mapping[str, Any]) -> Metric:
    """Return the metric that `metric_record` describes.

    Raises:
        ValueError: the record is not a valid description.
    """
    name, target, source, settings = (record.get(key) for key in ("name", "target", "source_hash", "settings"))
    if not (isinstance(name, str) and isinstance(target, str) and isinstance(source, str | None)):
        raise ValueError(
            "expected text as name and target, and text or null as source_hash, "
            f"got {name!r}, {target!r} and {source!r}"
        )
    if not isinstance(settings, dict | None):
        raise ValueError("expected a mapping of settings")
    if target in METRICS:
        return METRICS[target].with_settings(name, settings or {}, {})
    marked = metric(**{key: record.get(key) for key in ("of", *_RECORDED)})(lambda: None)  # type: ignore[arg-type]
    found: Metric = getattr(marked, MARK)
    return dataclasses.replace(found, name=name, target=target, settings=settings or {}, source_hash=source)


def is_metric_record(value: Any) -> bool:
    """Return whether a value has the form of `metric_record`."""
    try:
        return from_record(value).target is not None
    except (ValueError, TypeError, AttributeError):
        return False


def metrics_of(record: Mapping[str, Any]) -> Mapping[str, Metric]:
    """Return all metrics of a run by name: those in the catalog and the run's own.

    record: the checked content of `run.json`.
    """
    own = map(from_record, record.get(KEY) or ())
    return MappingProxyType({**METRICS, **{metric.name: metric for metric in own}})
