"""Multi-layer perceptron of any depth and width."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from optbench.models.network import ACTIVATIONS, Network
from optbench.suite import schema


class Mlp(Network):
    """`hidden` fully connected layers, each with an optional layer normalisation before its activation.

    Args:
        settings: widths, activation and normalisation.
        shape: the shape of one input, which is flattened.
        classes: the number of outputs.
    """

    def __init__(self, settings: schema.Mlp, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = [math.prod(shape), *settings.hidden]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        normalise = settings.normalisation == "layer"
        self.norms = nn.ModuleList([nn.LayerNorm(w) if normalise else nn.Identity() for w in settings.hidden])
        self.head = nn.Linear(widths[-1], classes)
        self.settings = settings
        self.initialisation = settings.initialisation

    def features(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.settings.activation]
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = activate(norm(layer(x)))
        return x
