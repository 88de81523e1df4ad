"""Accuracies, features and weights of a trial, measured by the names of the catalog; no torch is imported before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench.metrics.catalog import METRICS, Metric, select
from optbench.precision import exact

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

    from optbench.metrics.rank import Spectrum

# Without N and d no measure of features can be read, so they come with any of them, asked for or not.
_RECORDED = ("features_n", "features_d")


@dataclass(frozen=True)
class Measurement:
    """One measured value; `value` is None where undefined, and `note` then says why.

    layer: the weight tensor measured, or None for a measure of features or of all weights together.
    """

    metric: str
    layer: str | None
    value: float | None
    note: str | None


def measurement(metric: Metric, layer: str | None, value: float, note: str | None) -> Measurement:
    """What `metric` came to: a value that is not finite is undefined, and `note` then has to say why."""
    defined = math.isfinite(value)
    assert defined or note is not None, f"{metric.name} is undefined without a reason"
    return Measurement(metric.name, layer, value if defined else None, note)


def measure_accuracy(names: Iterable[str] | None, accuracy: ArrayLike) -> list[Measurement]:
    """The continual metrics among `names`, from one accuracy matrix (T+1, T) as `optbench.metrics.continual` has it.

    Raises UsageError for an unknown name, and ValueError for another shape.
    """
    from optbench.metrics import continual

    return [
        measurement(metric, None, float(metric.function()(accuracy)), continual.note(accuracy, **metric.note_arguments))
        for metric in select(names, "continual")
    ]


def measure_features(
    names: Iterable[str] | None, features: Tensor, labels: Tensor, *, spectrum: Spectrum | None = None
) -> list[Measurement]:
    """The metrics of features and of similarity among `names`, for one trial.

    features: (N, d), the input of the last linear layer on a fixed set of examples in eval mode.
    labels: (N,) integers.
    spectrum: `rank.spectrum(features)` where the caller has it already; it is computed once otherwise.
    N and d are recorded as `features_n` and `features_d` with any of them.
    Raises UsageError for an unknown name, and ValueError when the shapes disagree.
    """
    from optbench.metrics import rank, similarity, sparsity

    chosen = select(names, "features", "similarity")
    if not chosen:
        return []
    chosen += tuple(METRICS[name] for name in _RECORDED if METRICS[name] not in chosen)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features need shape (N, d) and labels (N,); {tuple(features.shape)} and {tuple(labels.shape)} came"
        )
    features = exact(features)
    labels = labels.to(features.device)
    if spectrum is None:
        spectrum = rank.spectrum(features)
    assert (spectrum.examples, spectrum.width) == features.shape, "a spectrum of other features"
    similarity_note = similarity.note(features, labels) if any(m.kind == "similarity" for m in chosen) else None
    activation_note = sparsity.activation_note(features)
    measurements = []
    for metric in chosen:
        function = metric.function()
        note: str | None
        if metric.subject == "rank":
            value = float(function(spectrum))
            note = None if metric.name in _RECORDED else rank.note(spectrum, **metric.note_arguments)
        elif metric.subject == "similarity":
            value, note = float(function(features, labels)), similarity_note
        else:
            value = float(function(features))
            note = activation_note if math.isnan(value) else None
        measurements.append(measurement(metric, None, value, note))
    return measurements


def measure_weights(names: Iterable[str] | None, weights: Mapping[str, Tensor]) -> list[Measurement]:
    """The metrics of weights among `names`, for one trial: per layer, and over all layers with `layer=None`.

    weights: parameters by name, of any shapes. Tensors of fewer than two axes (biases, gains of normalisation layers)
    are no weights, and left out. Raises UsageError for an unknown name.
    """
    import torch

    chosen = select(names, "weights")
    layers = {name: exact(weight).flatten() for name, weight in weights.items() if weight.ndim >= 2}
    if not chosen or not layers:
        return []
    everything = torch.cat(list(layers.values()))
    measurements = []
    for metric in chosen:
        function = metric.function()
        values = {name: float(function(layer)) for name, layer in layers.items()}
        for name, value in values.items():
            measurements.append(_weight_measurement(metric, name, value, layers[name]))
        if metric.name != "near_zero_share":
            measurements.append(_weight_measurement(metric, None, float(function(everything)), everything))
            continue
        # Each layer is held against its own rms, so the share over all layers is the mean of theirs weighted by size.
        total = sum(values[name] * layer.numel() for name, layer in layers.items() if layer.numel())
        overall = total / everything.numel() if everything.numel() else math.nan
        undefined = [name for name, layer in layers.items() if layer.numel() and math.isnan(values[name])]
        why = f"undefined in {', '.join(undefined)}" if undefined else "no weights" if math.isnan(overall) else None
        measurements.append(measurement(metric, None, overall, why))
    return measurements


def _weight_measurement(metric: Metric, layer: str | None, value: float, weights: Tensor) -> Measurement:
    from optbench.metrics import sparsity

    return measurement(metric, layer, value, sparsity.note(weights) if math.isnan(value) else None)
