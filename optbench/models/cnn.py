"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.kinds import Whole
from optbench.late import nn
from optbench.models.network import Activation, Initialisation, Network, activate

if TYPE_CHECKING:
    from torch import Tensor

    from optbench.data import InputSpec

Channels = Annotated[tuple[Annotated[Whole, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=4)]


class Cnn(Network):
    """Small convolutional network: 3x3 convolutions with 2x2 max-pooling, then one hidden linear layer.

    Convolutions have a padding of 1. Each pooling halves the height and the width, rounding down.
    """

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        *,
        channels: Channels = (16, 32),
        hidden: Annotated[Whole, Field(ge=1, le=100_000)] = 64,
        activation: Activation = "relu",
        initialisation: Initialisation = "uniform",
    ) -> None:
        """Build the network for images.

        Raises:
            ValueError: the inputs are not images, or are too small for this number of pooling layers.
        """
        super().__init__()
        if len(inputs.shape) != 3:
            raise ValueError(f"expected images (channels, rows, columns), got inputs of shape {inputs.shape}")
        first, height, width = inputs.shape
        shrink = 2 ** len(channels)
        if min(height, width) < shrink:
            raise ValueError(
                f"expected images of at least {shrink} pixels per side for {len(channels)} pooling layers, "
                f"got {height}x{width}"
            )
        counts = [first, *channels]
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(counts)])
        self.project = nn.Linear(counts[-1] * (height // shrink) * (width // shrink), hidden)
        self.head = nn.Linear(hidden, outputs)
        self.activation, self.initialisation = activation, initialisation

    @property
    def depth(self) -> int:
        return len(self.layers) + 1

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for layer in self.layers:
            before = layer(x)
            x = nn.functional.max_pool2d(activate(self.activation, before), 2)
            yield before, x
        before = self.project(x.flatten(1))
        yield before, activate(self.activation, before)
