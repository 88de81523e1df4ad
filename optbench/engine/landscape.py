"""Measures the landscape around a trained network: one member at a time, in float64, in eval mode.

Legend: P the network's parameters, without padding; N examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.batches import Normaliser
from optbench.engine.stack import Layout
from optbench.metrics.landscape import Loss
from optbench.metrics.measuring import Reading
from optbench.models import Network
from optbench.precision import exact
from optbench.tasks import Examples

EXAMPLES = 1000
"""The first so many training examples are the loss of the landscape: the same for all trials of a task.

A Hessian-vector product on them takes 15 ms for mlp-100 on one core, and a trace with an eigenvalue some fifty of
those, about a second. On all 55,000 of MNIST they would cost more than the training.
"""


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


class Landscape(Reading):
    """A network's weights at the end and before any training (P,), as `flat` gives them, and its training loss."""

    kinds = frozenset({"landscape"})

    def __init__(
        self, weights: Tensor, start: Tensor, make_loss: Callable[[], Loss], draws: Callable[[], torch.Generator]
    ) -> None:
        """make_loss: makes the loss; called only if a metric reads it.

        draws: a generator at the start of the trial's stream, so that no value depends on what else is measured.
        """
        super().__init__()
        self.weights, self.start = weights, start
        self._make_loss, self._draws = make_loss, draws

    @functools.cached_property
    def loss(self) -> Loss:
        return self._make_loss()

    @property
    def generator(self) -> torch.Generator:
        """A new one for each metric."""
        return self._draws()
