"""Measures the landscape around a trained network: one member at a time, in float64, in eval mode.

Legend: P the network's parameters, without padding; N examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.batches import Normaliser
from optbench.engine.stack import Layout
from optbench.metrics import METRICS, Measurement, Metric, measurement, select
from optbench.metrics.landscape import Loss, NotedValue, TopEigenvalue, Trace, displacement_note
from optbench.models import Network
from optbench.precision import exact
from optbench.tasks import Examples

EXAMPLES = 1000
"""The first so many training examples are the loss of the landscape: the same for all trials of a task.

A Hessian-vector product on them takes 15 ms for mlp-100 on one core, and a trace with an eigenvalue some fifty of
those, about a second. On all 55,000 of MNIST they would cost more than the training.
"""

RECORDED_WITH = {"hessian_top_eigenvalue": "hessian_top_residual", "hessian_trace": "hessian_trace_error"}
"""An estimate comes with its error, asked for or not; and whatever reads the loss comes with `landscape_loss`."""

_OF_WEIGHTS = ("distance_from_init", "relative_distance_from_init")
_DRAWS = ("hessian_top_eigenvalue", "hessian_trace")
_ERRORS = {"hessian_top_residual": "residual", "hessian_trace_error": "error"}


def training_loss(network: Network, layout: Layout, normalise: Normaliser, examples: Examples) -> Loss:
    """Mean cross-entropy on the first `EXAMPLES` of `examples` as a function of the weights (P,), in float64.

    The weights lie one parameter after the other in the order of `layout`, as `flat` gives them.
    """
    # Bytes become float32 first, as in training: the very inputs that the network was trained on.
    inputs = exact(normalise(examples.inputs[:EXAMPLES]))
    labels = examples.targets[:EXAMPLES].to(inputs.device)
    network.eval()

    def loss(weights: Tensor) -> Tensor:
        parts = torch.split(weights, [slot.numel for slot in layout.slots])
        parameters = {slot.name: part.view(slot.shape) for slot, part in zip(layout.slots, parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(network, parameters, (inputs,)), labels)

    return loss


def flat(layout: Layout, row: Tensor) -> Tensor:
    """A member's row to its weights (P,) in float64: one parameter after the other, without padding."""
    return exact(torch.cat([view.detach().flatten() for view in layout.views(row).values()]))


def measure_landscape(
    names: Sequence[str],
    weights: Tensor,
    start: Tensor,
    make_loss: Callable[[], Loss],
    draws: Callable[[], torch.Generator],
) -> list[Measurement]:
    """The metrics of the landscape among `names`, for one trial.

    weights, start: (P,) at the end and before any training, as `flat` gives them.
    make_loss: makes the loss; called only if a metric reads it.
    draws: a generator at the start of the trial's stream, so that no value depends on what else is measured.
    Raises UsageError for an unknown name.
    """
    chosen = _with_recorded(select(names, "landscape"))
    measurements = []
    note: str | None
    for metric in chosen:
        if metric.name in _OF_WEIGHTS:
            value = float(metric.function()(weights, start))
            note = None if math.isfinite(value) else displacement_note(weights, start)
            measurements.append(measurement(metric, None, value, note))
    of_loss = [metric for metric in chosen if metric.name not in _OF_WEIGHTS]
    if not of_loss:
        return measurements
    loss = make_loss()
    results: dict[str, NotedValue | TopEigenvalue | Trace] = {}  # an estimate and its error come from one computation
    for metric in of_loss:
        key = metric.called or metric.name
        if key not in results:
            function = metric.function()
            results[key] = function(loss, weights, draws()) if key in _DRAWS else function(loss, weights)
        value = getattr(results[key], _ERRORS.get(metric.name, "value"))
        measurements.append(measurement(metric, None, value, results[key].note))
    return measurements


def _with_recorded(chosen: Sequence[Metric]) -> list[Metric]:
    names = [metric.name for metric in chosen]
    if set(names) - set(_OF_WEIGHTS):
        names.append("landscape_loss")
    names += [RECORDED_WITH[name] for name in names if name in RECORDED_WITH]
    return [METRICS[name] for name in dict.fromkeys(names)]
