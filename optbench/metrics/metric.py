"""What a metric is, without what computes it; the catalog has the registered ones."""

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
"""What registered metrics are derived of when a run is read."""
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
    """What a metric is, without importing what computes it.

    direction: which values are better; a neutral metric is higher or lower, never better.
    margin: the smallest difference worth a verdict, in the metric's own unit; 0 where none is set, and nothing then
        is equivalent.
    kind: what it is measured from: `continual` the accuracy matrix, `online` the accuracy on each batch before its
        update, by task, `features` (N, d), `similarity` features with labels, `weights` each weight tensor and all
        together, `landscape` final and initial weights and the training loss, `overlap` features of each task by the
        networks that tasks ended with, `cost` a trial's record of its training, `pruning` the accuracies with only the
        largest weights, `collapse` features of training examples and the last layer, `transfer` features of another
        dataset, `curve` the evaluations during the last task, `updates` the steps of each weight matrix at some points
        of training, `pair` two trained networks (a suite's `pairs`), `logits` (N, C) with
        targets, `model` the trained network with test inputs and targets.
    subject: the module `optbench.metrics.<subject>` that defines its function.
    reads: what its function takes: attributes of the reading of its kind, see `measuring`.
    cost: `cheap` (milliseconds a trial) or `expensive`.
    default: whether it is taken when a suite names no metrics.
    called: the function's name where it is not the metric's.
    arguments: keyword arguments of the function, beyond the data.
    result: the attribute of what the function returns that holds the value, beside `note`; None: it returns the value.
    note: the function of the module that says, of the same arguments, why a value is undefined.
    note_arguments: keyword arguments of `note`.
    remarks: whether `note` may also have something to say of a value that is defined.
    alongside: metrics without which the value cannot be read: taken with it.
    averaged: whether the value over all layers is the mean of theirs, weighted by size, rather than of all weights.
    scope: which pruning curve it is read from, one of `pruning.SCOPES`; None for other kinds.
    said: what tables call it where that is not its name: of text, see `score`.
    target: what a suite's entry names, where it is not in this catalog: a user's function, or a metric with settings.
    settings: as plain values, defaults included.
    place: where in the network its features are read, which settings choose where it is `placed`.
    source_hash: of a user's metric, which has no subject.
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
        """Whether settings choose where it is read: measures of rank."""
        return self.reads == ("spectrum",)

    @property
    def is_size(self) -> bool:
        """Whether it only says how many numbers the measures of features were taken on: no result of an optimizer."""
        return self.kind == "features" and self.source == "recorded"

    @property
    def computed_by(self) -> str:
        """The name of the function of a registered metric; several metrics may read one function's result."""
        return self.called or base_name(self.name)

    def function(self) -> Callable[..., Any]:
        """The function that computes it, with `arguments` bound; imports its module."""
        found = targets.load(self.target) if self.target and self.is_users else self._named(self.computed_by)
        return partial(found, **self.arguments) if self.arguments else found

    def with_settings(self, name: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> Metric:
        """This metric of the catalog with settings, under another name. arguments: what the settings mean."""
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
        """Why the value of these arguments is undefined, or what to remark on it."""
        note: str | None = self._named(self.note)(*arguments, **self.note_arguments)
        return note

    def _named(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(importlib.import_module(f"optbench.metrics.{self.subject}"), name)
        return found


def is_own(target: str) -> bool:
    """Return whether a target is a user's rather than a registered name."""
    return ":" in target


def base_name(name: str) -> str:
    """`margin` of `margin power=2`: the name of a metric without its settings."""
    return name.partition(" ")[0]
