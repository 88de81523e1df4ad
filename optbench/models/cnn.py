"""A small convolutional network."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from optbench.models.network import ACTIVATIONS, Network
from optbench.suite import schema


class Cnn(Network):
    """3x3 convolutions (padding 1), each followed by its activation and 2x2 max-pooling; then one hidden linear layer.

    Args:
        settings: channels of each convolution, width of the hidden layer, activation.
        shape: the shape (C, H, W) of one input. Each convolution halves H and W, rounding down.
        classes: the number of outputs.

    Raises:
        ValueError: the image is too small for so many halvings.
    """

    def __init__(self, settings: schema.Cnn, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"expected images (channels, rows, columns), got inputs of shape {shape}")
        channels, height, width = shape
        counts = [channels, *settings.channels]
        shrink = 2 ** len(settings.channels)
        if min(height, width) < shrink:
            raise ValueError(
                f"{len(settings.channels)} poolings need images of {shrink} pixels a side; {height}x{width} came"
            )
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(counts)])
        for _ in settings.channels:
            height, width = height // 2, width // 2
        self.project = nn.Linear(counts[-1] * height * width, settings.hidden)
        self.head = nn.Linear(settings.hidden, classes)
        self.settings = settings
        self.initialisation = settings.initialisation

    def features(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.settings.activation]
        for layer in self.layers:
            x = nn.functional.max_pool2d(activate(layer(x)), 2)
        return activate(self.project(x.flatten(1)))
