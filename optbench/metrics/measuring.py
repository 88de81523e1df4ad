"""Readings, the inputs of metrics, and the computation of metrics from readings. Imports torch only when needed.

A reading holds tensors of one trial, and intermediate results that several metrics share, such as a decomposition.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from optbench.metrics.catalog import companions
from optbench.metrics.metric import Kind, Metric
from optbench.metrics.place import FEATURES, Place
from optbench.precision import exact, exact_device

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from optbench.metrics.collapse import Collapse
    from optbench.metrics.overlap import Change, TaskFeatures
    from optbench.metrics.prediction import ClassHits
    from optbench.metrics.rank import SingularValues, Spectrum
    from optbench.metrics.similarity import ClassSums
    from optbench.metrics.sparsity import Activity
    from optbench.metrics.updates import Geometry

Ask: TypeAlias = Callable[[Metric, Sequence[Any]], tuple[float, str | None]]
"""A function that calls a user's metric with the given arguments; returns the value and, if this is NaN, the reason."""


NO_CLASSES = "expected classes, got the tokens of a text"


@dataclass(frozen=True)
class Measurement:
    """One measured value; `value` is None if undefined, with the reason in `note`.

    layer: the name of the measured weight tensor; None for a metric of features or of all weights together.
    """

    metric: str
    layer: str | None
    value: float | None
    note: str | None


def measurement(metric: Metric, layer: str | None, value: float, note: str | None) -> Measurement:
    """Return a `Measurement` of `metric`; if `value` is not finite, it is stored as None and `note` is required."""
    defined = math.isfinite(value)
    assert defined or note is not None, f"{metric.name} is undefined without a reason"
    return Measurement(metric.name, layer, value if defined else None, note)


def take(metrics: Iterable[Metric], reading: Reading, ask: Ask | None = None) -> list[Measurement]:
    """Measure those `metrics` whose kind the reading supports, and their companions.

    ask: the function that calls users' metrics; required if `metrics` contains any.
    """
    chosen = {metric.name: metric for metric in metrics if metric.kind in reading.kinds}
    for companion in [companion for metric in chosen.values() for companion in companions(metric)]:
        chosen.setdefault(companion.name, companion)
    return [found for metric in chosen.values() for found in reading.measure(metric, ask)]


def mean_of_layers(metric: Metric, layers: Sequence[Measurement], sizes: Sequence[int]) -> Measurement:
    """Return a metric's mean over layers, weighted by size; undefined if it is undefined for any layer with weights."""
    filled = [(layer, size) for layer, size in zip(layers, sizes, strict=True) if size]
    undefined = [str(layer.layer) for layer, _ in filled if layer.value is None]
    if undefined or not filled:
        return measurement(
            metric, None, math.nan, f"undefined in {', '.join(undefined)}" if undefined else "no weights"
        )
    total = sum(layer.value * size for layer, size in filled if layer.value is not None)
    notes = dict.fromkeys(layer.note for layer, _ in filled if layer.note)
    return measurement(metric, None, total / sum(sizes), "; ".join(notes) or None)


class Reading:
    """The input of metrics of certain kinds; its attributes are passed to the metrics' functions as arguments."""

    kinds: ClassVar[frozenset[Kind]]

    def __init__(self) -> None:
        self._shared: dict[object, Any] = {}

    def measure(self, metric: Metric, ask: Ask | None) -> list[Measurement]:
        return [self.value(metric, ask)]

    def value(self, metric: Metric, ask: Ask | None, layer: str | None = None) -> Measurement:
        """Compute a metric from this reading."""
        arguments = [getattr(self, name) for name in metric.reads]
        if metric.is_users:
            assert ask is not None, "expected `ask`, which calls users' metrics"
            return measurement(metric, layer, *ask(metric, arguments))
        key = (metric.subject, metric.computed_by, *metric.arguments.items())
        found = self._once(key, lambda: metric.function()(*arguments))
        if metric.result is not None:
            return measurement(metric, layer, getattr(found, metric.result), found.note)
        value, note = float(found), None
        if metric.remarks or not math.isfinite(value):
            key = (metric.subject, metric.note, *metric.note_arguments.items())
            note = self._once(key, lambda: metric.explain(*arguments))
        return measurement(metric, layer, value, note)

    def _once(self, key: object, make: Callable[[], Any]) -> Any:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


class Elsewhere(Reading):
    """The decomposition of features at another place in the network; the features themselves are not kept."""

    kinds = frozenset({"features"})

    def __init__(self, spectrum: Spectrum) -> None:
        super().__init__()
        self.spectrum = spectrum


class Features(Reading):
    """The input of the last linear layer on a fixed set of examples, (N, d), with targets (N,).

    Registered metrics of features use only data that `Pooled` can combine: sums over examples and one decomposition.
    """

    kinds = frozenset({"features", "similarity", "logits"})

    def __init__(
        self,
        features: Tensor,
        targets: Tensor,
        logits: Tensor | None = None,
        elsewhere: Mapping[Place, Spectrum | None] = MappingProxyType({}),
        *,
        classes: bool = True,
        cues: Tensor | None = None,
    ) -> None:
        """logits: (N, C), required by metrics of logits. classes: True if targets are classes, False for tokens.

        cues: (N,), as in `Split`.

        elsewhere: decompositions of the features at other places; None for a place that is the input of the last linear
            layer under another name.

        Raises:
            ValueError: the shapes disagree.
        """
        super().__init__()
        if features.ndim != 2 or targets.shape != features.shape[:1]:
            raise ValueError(
                f"expected features (N, d) and targets (N,), got {tuple(features.shape)} and {tuple(targets.shape)}"
            )
        device = exact_device(features.device)
        self._given, self._given_targets, self._logits = features.detach().to(device), targets.to(device), logits
        self.classes, self.cues = classes, cues
        self._elsewhere: dict[Place, Reading] = {FEATURES: self}
        self._elsewhere |= {place: Elsewhere(known) if known else self for place, known in elsewhere.items()}

    def value(self, metric: Metric, ask: Ask | None, layer: str | None = None) -> Measurement:
        if metric.kind == "similarity" and not self.classes:
            return measurement(metric, layer, math.nan, NO_CLASSES)
        return Reading.value(self.at(metric.place), metric, ask, layer)

    def at(self, place: Place) -> Reading:
        """Return the reading for a place in the network."""
        return self._elsewhere[place]

    @functools.cached_property
    def features(self) -> Tensor:
        """(N, d) in float64."""
        return exact(self._given)

    @functools.cached_property
    def targets(self) -> Tensor:
        return self._given_targets

    @functools.cached_property
    def logits(self) -> Tensor:
        """(N, C) in float64."""
        assert self._logits is not None, "read without logits"
        return exact(self._logits)

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        """The decomposition shared by all metrics of rank."""
        from optbench.metrics import rank

        return rank.spectrum(self._given)

    @functools.cached_property
    def activity(self) -> Activity:
        """The sums shared by all metrics of activations."""
        from optbench.metrics import sparsity

        return sparsity.activity(self._given)

    @functools.cached_property
    def class_sums(self) -> ClassSums:
        """The sums shared by all metrics of classes."""
        from optbench.metrics import similarity

        return similarity.class_sums(self._given, self.targets)

    @functools.cached_property
    def class_hits(self) -> ClassHits:
        """Counts of correct predictions by class; empty for text."""
        from optbench.metrics import prediction

        assert self._logits is not None, "read without logits"
        found = prediction.class_hits(self._logits, self.targets)
        return found if self.classes else prediction.ClassHits(found.hits[:0], found.examples[:0])


class Pooled(Features):
    """The features of several tasks together, combined without another pass over the examples."""

    def __init__(self, parts: Sequence[Features]) -> None:
        """parts: the features of each task; at least one, and all of the same width."""
        Reading.__init__(self)
        self._parts = parts
        self.classes = all(part.classes for part in parts)
        self.cues = None if any(part.cues is None for part in parts) else self._joined("cues")

    def at(self, place: Place) -> Reading:
        from optbench.metrics import rank

        found = [part.at(place) for part in self._parts]
        elsewhere = [reading.spectrum for reading in found if isinstance(reading, Elsewhere)]
        return self._once(place, lambda: Elsewhere(rank.pooled(elsewhere))) if elsewhere else self

    @functools.cached_property
    def features(self) -> Tensor:
        return self._joined("features")

    @functools.cached_property
    def targets(self) -> Tensor:
        return self._joined("targets")

    @functools.cached_property
    def logits(self) -> Tensor:
        return self._joined("logits")

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        from optbench.metrics import rank

        return rank.pooled([part.spectrum for part in self._parts])

    @functools.cached_property
    def activity(self) -> Activity:
        from optbench.metrics import sparsity

        return sparsity.pooled_activity([part.activity for part in self._parts])

    @functools.cached_property
    def class_sums(self) -> ClassSums:
        from optbench.metrics import similarity

        return similarity.pooled_sums([part.class_sums for part in self._parts])

    @functools.cached_property
    def class_hits(self) -> ClassHits:
        from optbench.metrics import prediction

        return prediction.pooled_hits([part.class_hits for part in self._parts])

    def _joined(self, name: str) -> Tensor:
        import torch

        return torch.cat([getattr(part, name) for part in self._parts])


class Weights(Reading):
    """Weight tensors by name, in float64. Tensors with fewer than two axes (biases, gains) are left out."""

    kinds = frozenset({"weights"})

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = {name: exact(weight) for name, weight in weights.items() if weight.ndim >= 2}

    @functools.cached_property
    def flat(self) -> Tensor:
        """All weights concatenated, (n,)."""
        import torch

        return torch.cat([weight.flatten() for weight in self.weights.values()])

    @functools.cached_property
    def singular_values(self) -> SingularValues:
        """Singular values of a single layer's matrix (outputs, all other axes), shared by metrics of weight rank."""
        from optbench.metrics import rank

        (weight,) = self.weights.values()
        # Explicit sizes, because -1 is ambiguous for a tensor without elements.
        return rank.singular_values(weight.reshape(len(weight), math.prod(weight.shape[1:])))

    @functools.cached_property
    def _layers(self) -> dict[str, Weights]:
        return {name: Weights({name: weight}) for name, weight in self.weights.items()}

    def measure(self, metric: Metric, ask: Ask | None) -> list[Measurement]:
        """Measure each layer, then all of them together."""
        if not self.weights:
            return []
        layers = [layer.value(metric, ask, name) for name, layer in self._layers.items()]
        sizes = [weight.numel() for weight in self.weights.values()]
        return [*layers, mean_of_layers(metric, layers, sizes) if metric.averaged else self.value(metric, ask)]


class Overlap(Reading):
    """Features of every task's examples at the end, and their changes since each task was learnt."""

    kinds = frozenset({"overlap"})

    def __init__(self, changes: Sequence[Change], tasks: Sequence[TaskFeatures]) -> None:
        """changes: one for each task before the last. tasks: the features of every task at the end."""
        super().__init__()
        self.changes, self.tasks = changes, tasks


class Updates(Reading):
    """Updates of each weight matrix at some points in training; overall values are layer means, weighted by size."""

    kinds = frozenset({"updates"})

    def __init__(self, layers: Mapping[str, Sequence[Geometry]], sizes: Mapping[str, int]) -> None:
        """sizes: number of weights per layer."""
        super().__init__()
        self._layers, self._sizes = layers, sizes

    def measure(self, metric: Metric, ask: Ask | None) -> list[Measurement]:
        """Measure each layer, then the mean over layers."""
        found = [Update(points).value(metric, ask, name) for name, points in self._layers.items()]
        return [*found, mean_of_layers(metric, found, [self._sizes[name] for name in self._layers])] if found else []


class Update(Reading):
    """Updates of one weight matrix at some points in training."""

    kinds = frozenset({"updates"})

    def __init__(self, points: Sequence[Geometry]) -> None:
        super().__init__()
        self.points = points


class OfTraining(Reading):
    """Features and labels of training examples, and the last layer."""

    kinds = frozenset({"collapse"})

    def __init__(self, collapse: Collapse | None) -> None:
        """collapse: None for text, which has no classes."""
        super().__init__()
        self.collapse = collapse

    def value(self, metric: Metric, ask: Ask | None, layer: str | None = None) -> Measurement:
        if self.collapse is None:
            return measurement(metric, layer, math.nan, NO_CLASSES)
        return super().value(metric, ask, layer)


class Accuracy(Reading):
    """The accuracy matrix (T+1, T) of one trial, row 0 before training."""

    kinds = frozenset({"continual"})

    def __init__(self, accuracy: NDArray[Any]) -> None:
        super().__init__()
        self.accuracy = accuracy
