"""The description of a metric; registered metrics are in the catalog."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from optbench import targets
from optbench.metrics.place import FEATURES, SETTINGS, Place

Direction = Literal["higher", "lower", "neutral"]
Derived = Literal["continual", "online", "cost", "pruning"]
"""Kinds of registered metrics that are derived when a run is read."""
Kind = (
    Derived
    | Literal[
        "features",
        "similarity",
        "weights",
        "logits",
        "model",
        "landscape",
        "collapse",
        "transfer",
        "curve",
        "overlap",
        "updates",
        "pair",
    ]
)
Subject = (
    Derived
    | Literal[
        "plasticity",
        "rank",
        "similarity",
        "sparsity",
        "prediction",
        "collapse",
        "transfer",
        "reaching",
        "landscape",
        "overlap",
        "updates",
        "pairs",
    ]
)
Cost = Literal["cheap", "expensive"]

_ARROWS: Mapping[Direction, str] = MappingProxyType({"higher": "↑", "lower": "↓", "neutral": "·"})


@dataclass(frozen=True)
class Metric:
    """The description of a metric; creating it does not import the metric's function.

    direction: which values are better; values of a neutral metric are called higher or lower, never better.
    margin: the smallest relevant difference, in the metric's unit; with 0, no values are judged equivalent.
    kind: the metric's input.

        - `continual`: the accuracy matrix
        - `online`: each task's online accuracy, i.e. the mean over its batches, each evaluated before the update on it
        - `features`: the features (N, d)
        - `similarity`: the features with labels
        - `logits`: the logits (N, C) with targets
        - `weights`: each weight tensor, and all of them together
        - `model`: the trained network with test inputs and targets
        - `landscape`: the final and initial weights, and the training loss
        - `overlap`: the features of each task, computed by the networks at the ends of tasks
        - `collapse`: the features of training examples, and the last layer
        - `transfer`: the features of another dataset
        - `curve`: the evaluations during the last task
        - `updates`: the steps of each weight matrix at some points in training
        - `pruning`: the accuracies with only the largest weights
        - `pair`: two trained networks (a suite's `pairs`)
        - `cost`: the record of a trial's training

    subject: the module `optbench.metrics.<subject>` that defines the metric's function.
    reads: the names of the reading's attributes (see `measuring`) that are the function's first arguments, in order.
    cost: `cheap` (milliseconds per trial) or `expensive`.
    default: whether the metric is measured if a suite names no metrics.
    called: the function's name if it differs from the metric's.
    arguments: further keyword arguments of the function.
    result: the attribute of the function's result that holds the value, if the result also has a `note`; None: the
        function returns the value itself.
    note: the name of a function in the same module that takes the same arguments and returns why the value is NaN.
    note_arguments: keyword arguments of `note`.
    remarks: whether `note` can also comment on a defined value.
    alongside: companion metrics, which are measured with this one because they are needed to interpret it.
    averaged: True if the overall value is the mean over layers, weighted by size; False if all weights are pooled.
    scope: the metric's pruning curve, one of `pruning.SCOPES`; None for other kinds.
    said: the name in tables about text, with "score" instead of "accuracy"; empty if unchanged. See `score`.
    target: a user's function as `module:name` or `./file.py:name`, or the registered name of a metric with settings;
        None for a metric in the catalog.
    settings: the settings as plain values, including defaults.
    place: where in the network the metric's features are read; set by the settings of `placed` metrics.
    source_hash: the hash of a user's source file; None for registered metrics.
    """

    name: str
    formula: str
    source: str
    direction: Direction = "neutral"
    margin: float = 0.01
    _: KW_ONLY
    kind: Kind
    subject: Subject | None = None
    reads: tuple[str, ...] = ()
    cost: Cost = "cheap"
    default: bool = True
    called: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    result: str | None = None
    note: str = "note"
    note_arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    remarks: bool = False
    alongside: tuple[str, ...] = ()
    averaged: bool = False
    scope: str | None = None
    unit: str = ""
    said: str = ""
    target: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    place: Place = FEATURES
    source_hash: str | None = None

    @property
    def arrow(self) -> str:
        """↑ for higher is better, ↓ for lower is better, · for neutral."""
        return _ARROWS[self.direction]

    @property
    def is_users(self) -> bool:
        return self.target is not None and is_own(self.target)

    @property
    def placed(self) -> bool:
        """True if settings choose where the metric's features are read, as for metrics of rank."""
        return self.reads == ("spectrum",)

    @property
    def is_size(self) -> bool:
        """True if the metric only states the size of the features, which does not depend on the optimizer."""
        return self.kind == "features" and self.source == "recorded"

    @property
    def computed_by(self) -> str:
        """The name of a registered metric's function; several metrics can share one function."""
        return self.called or base_name(self.name)

    def function(self) -> Callable[..., Any]:
        """Import the metric's function and return it with `arguments` bound."""
        found = targets.load(self.target) if self.target and self.is_users else self._named(self.computed_by)
        return partial(found, **self.arguments) if self.arguments else found

    def with_settings(self, name: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> Metric:
        """Return this metric with settings and a new name. arguments: the settings as keyword arguments."""
        own = {name: value for name, value in arguments.items() if not (self.placed and name in SETTINGS)}
        return replace(
            self,
            name=name,
            target=self.name,
            settings=settings,
            arguments={**self.arguments, **own},
            place=Place.of(settings) if self.placed else FEATURES,
            default=False,
        )

    def explain(self, *arguments: Any) -> str | None:
        """Return why the value for these arguments is undefined, or a remark on it."""
        note: str | None = self._named(self.note)(*arguments, **self.note_arguments)
        return note

    def _named(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(importlib.import_module(f"optbench.metrics.{self.subject}"), name)
        return found


def is_own(target: str) -> bool:
    """Return whether a target names a user's metric rather than a registered one."""
    return ":" in target


def base_name(name: str) -> str:
    """Return a metric's name without its settings, e.g. `margin` for `margin power=2`."""
    return name.partition(" ")[0]
