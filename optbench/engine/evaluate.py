"""Measures networks: loss, accuracy and features, in eval mode and without gradients.

Legend: P padded parameter count, N examples, d features, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

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
        weights = self._weights(row)
        count = examples.labels.numel()
        loss = torch.zeros((), dtype=torch.float64, device=row.device)
        correct = torch.zeros((), dtype=torch.int64, device=row.device)
        parts = []
        for inputs, labels in self._chunks(examples):
            features, logits = functional_call(self._reader, weights, (inputs,))
            loss += nn.functional.cross_entropy(logits, labels, reduction="none").double().sum()
            correct += (logits.argmax(1) == labels).sum()
            parts.append(features)
        return Reading(loss.item() / count, correct.item() / count, count, torch.cat(parts), examples.labels)

    @torch.no_grad()
    def correct(self, rows: Sequence[Tensor], examples: Examples) -> list[int]:
        """How many of `examples` each network labels correctly, weights `rows` (P,): `read`'s accuracy, for less."""
        networks = [self._weights(row) for row in rows]
        counts = torch.zeros(len(rows), dtype=torch.int64, device=examples.labels.device)
        for inputs, labels in self._chunks(examples):
            for i, weights in enumerate(networks):
                _, logits = functional_call(self._reader, weights, (inputs,))
                counts[i] += (logits.argmax(1) == labels).sum()
        found: list[int] = counts.tolist()
        return found

    def _weights(self, row: Tensor) -> dict[str, Tensor]:
        return {f"network.{name}": view for name, view in self._layout.views(row).items()}

    def _chunks(self, examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(examples), CHUNK):
            chunk = slice(start, start + CHUNK)
            yield self.normalise(examples.inputs[chunk]), examples.labels[chunk]
