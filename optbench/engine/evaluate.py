"""Measures networks: loss, accuracy and features, in eval mode and without gradients.

Legend: P padded parameter count, N examples, d features, C classes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optbench.engine.batches import Normaliser
from optbench.engine.stack import Layout
from optbench.models import Network
from optbench.tasks import Examples

CHUNK = 2500
"""Examples per forward pass: large enough to be fast, small enough that the floats of MNIST stay below 10 MB."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One network on one set of examples."""

    loss: float
    """Mean cross-entropy; not finite for a diverged network."""
    accuracy: float
    examples: int
    features: Tensor
    """(N, d) float32, the input of the last linear layer."""
    labels: Tensor
    """(N,)"""


class _Reader(nn.Module):
    """Returns features and logits of the network it holds."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(inputs)
        return features, self.network.head(features)


class Evaluator:
    """Reads networks of one shape, given as rows of a stack, one by one: none meets another's numbers."""

    def __init__(self, network: Network, layout: Layout, normalise: Normaliser) -> None:
        self.network = network
        self.normalise = normalise
        self._reader = _Reader(network).eval()
        self._layout = layout

    @torch.no_grad()
    def read(self, row: Tensor, examples: Examples) -> Reading:
        """The network with weights `row` (P,) on all `examples`."""
        weights = {f"network.{name}": view for name, view in self._layout.views(row).items()}
        count = examples.labels.numel()
        loss = torch.zeros((), dtype=torch.float64, device=row.device)
        correct = torch.zeros((), dtype=torch.int64, device=row.device)
        parts = []
        for start in range(0, count, CHUNK):
            inputs = self.normalise(examples.inputs[start : start + CHUNK])
            labels = examples.labels[start : start + CHUNK]
            features, logits = functional_call(self._reader, weights, (inputs,))
            loss += nn.functional.cross_entropy(logits, labels, reduction="none").double().sum()
            correct += (logits.argmax(1) == labels).sum()
            parts.append(features)
        return Reading(loss.item() / count, correct.item() / count, count, torch.cat(parts), examples.labels)
