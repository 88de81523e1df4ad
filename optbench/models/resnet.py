"""The residual network for CIFAR (He et al. 2016), with batch, group or layer normalisation.

Shapes: B images with C channels and H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optbench.kinds import Whole
from optbench.late import nn
from optbench.models.network import Network

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from optbench.data import InputSpec

GROUPS = 8
"""Default number of groups in group normalisation, reduced to a divisor of the width if necessary."""
SMALLEST = 5
"""Minimum number of pixels per side, so that batch norm averages over at least two pixels in the last stage."""


class ResNet(Network):
    """Residual network of depth 6n + 2: a 3x3 convolution, 3 stages of n blocks, the mean over pixels, a linear layer.

    The stages have `width`, 2 · `width` and 4 · `width` channels; the second and third stages start by halving the
    height and the width of images, rounding up. A block has two 3x3 convolutions without biases, each followed by a
    normalisation. One ReLU follows the first normalisation, and another follows the sum with the shortcut. Shortcuts
    have no parameters: where the shape changes, they take every second pixel and add channels of zeros (option A).
    ResNet-20 with a width of 16 has 269,722 weights for CIFAR-10.

    Initial weights are drawn from N(0, 2/fan_in) (He et al. 2015), and biases are 0. The hidden layers are the first
    convolution and the blocks; features are the mean over pixels of the last block's output.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2.
    """

    deep: ClassVar[bool] = True

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        *,
        depth: Annotated[Whole, Field(ge=1, le=10_000)] = 20,
        width: Annotated[Whole, Field(ge=1, le=10_000)] = 16,
        norm: Literal["batch", "group", "layer"] = "batch",
        groups: Annotated[Whole, Field(ge=1)] | None = None,
    ) -> None:
        """Build the network for images.

        norm: the normalisation. With `batch`, members are trained one by one. `group` normalises over the pixels of an
            image and groups of its channels (Wu & He 2018), `layer` over the pixels and all channels.
        groups: number of channel groups for `group`; null for the largest divisor of `width` that is at most 8.

        Raises:
            ValueError: the inputs are not images or are too small, `depth` is not 6n + 2, or `groups` does not divide
                `width` or is given for another norm.
        """
        super().__init__()
        if len(inputs.shape) != 3:
            raise ValueError(f"expected images (channels, rows, columns), got inputs of shape {inputs.shape}")
        channels, *sides = inputs.shape
        if min(sides) < SMALLEST:
            raise ValueError(f"expected images of at least {SMALLEST} pixels per side, got {sides[0]}x{sides[1]}")
        if (depth - 2) % 6 or depth < 8:
            below = max(8, depth - (depth - 2) % 6)
            raise ValueError(f"depth: expected 6n + 2, such as {below} or {below + 6}, got {depth}")
        if groups is not None and norm != "group":
            raise ValueError(f"groups: expected norm: group, got norm: {norm}, which has no groups")
        if groups is not None and width % groups:
            raise ValueError(f"groups: expected a divisor of the width {width}, got {groups}")
        if groups is None:
            groups = next(count for count in range(GROUPS, 0, -1) if width % count == 0)

        def normalisation(size: int) -> nn.Module:
            return nn.BatchNorm2d(size) if norm == "batch" else nn.GroupNorm(1 if norm == "layer" else groups, size)

        counts = [width] + [width * 2**stage for stage in range(3) for _ in range((depth - 2) // 6)]
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = normalisation(width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "first": nn.Conv2d(a, b, 3, stride=b // a, padding=1, bias=False),
                    "first_norm": normalisation(b),
                    "second": nn.Conv2d(b, b, 3, padding=1, bias=False),
                    "second_norm": normalisation(b),
                }
            )
            for a, b in pairwise(counts)
        )
        self.head = nn.Linear(counts[-1], outputs)
        self.batch_norm = norm == "batch"

    @property
    def depth(self) -> int:
        return len(self.blocks) + 1

    @property
    def alone(self) -> str | None:
        return "batch norm" if self.batch_norm else None

    def draw(self, name: str, weights: Tensor, generator: torch.Generator) -> bool:
        if "norm" in name:
            return False
        if not name.endswith("bias"):
            weights.normal_(0.0, math.sqrt(2 / math.prod(weights.shape[1:])), generator=generator)
        return True

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a pair for the first convolution and each block: the last ReLU's input, (B, C, H, W), and the output.

        The output of the last block is the mean over pixels, (B, C).
        """
        before = self.norm(self.stem(x))
        x = before.relu()
        yield before, x
        for i, block in enumerate(self.blocks, 2):
            assert isinstance(block, nn.ModuleDict)
            inner = block["first_norm"](block["first"](x)).relu()
            before = block["second_norm"](block["second"](inner)) + _shortcut(x, inner.shape[1])
            x = before.relu()
            yield before, x if i < self.depth else x.mean((2, 3))


def _shortcut(x: Tensor, channels: int) -> Tensor:
    """Return images (B, C, H, W) unchanged if they have `channels` channels.

    Otherwise, return every second pixel, with channels of zeros added before and after the existing channels.
    """
    extra = channels - x.shape[1]
    return x if extra == 0 else nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2))
