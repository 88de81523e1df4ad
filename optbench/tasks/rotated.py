"""Rotated images: each task rotates the images by a different angle (Lopez-Paz & Ranzato 2017, rotated MNIST)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.errors import UsageError
from optbench.late import nn, torch
from optbench.tasks.examples import Examples, Part, Parts
from optbench.tasks.kind import Outline

if TYPE_CHECKING:
    from torch import Tensor

Angle = Annotated[float, Field(ge=-360, le=360)]
_CHUNK = 4096  # images at a time: limits the float copy to about 13 MB for MNIST


class Rotated:
    """Rotated images: task i rotates them counter-clockwise by angles[i] degrees.

    The tasks are the same for every trial seed.
    """

    def __init__(
        self,
        data: Parts,
        seed: int,
        *,
        angles: Annotated[tuple[Angle, ...], Field(min_length=1)] = (0.0, 30.0, 60.0),
    ) -> None:
        inputs = data.train.inputs
        if inputs.dtype != torch.uint8 or inputs.ndim != 4:
            dtype = str(inputs.dtype).removeprefix("torch.")
            raise UsageError(f"tasks.kind: expected uint8 images (C, H, W), got {dtype} {tuple(inputs.shape[1:])}")
        self.names = self.outline(data.classes, angles=angles).names
        self._angles = [angle % 360 for angle in angles]
        self._parts = data

    @staticmethod
    def outline(classes: int, *, angles: Sequence[float]) -> Outline:
        names, ticks = (tuple(f"{angle:g}{unit}" for angle in angles) for unit in (" degrees", "°"))
        return Outline(names, classes, ticks=ticks, axis="rotation")

    def key(self, trial_seed: int, task: int) -> Hashable:
        return "degrees", self._angles[task]

    def examples(self, trial_seed: int, task: int, part: Part) -> Examples:
        plain = self._parts[part]
        angle = self._angles[task]
        if angle == 0:
            return plain
        return Examples(rotate(plain.inputs, angle), plain.targets, cues=plain.cues)

    def mirrored(self, trial_seed: int, task: int) -> Tensor | None:
        angle = self._angles[task]
        # Mirroring commutes with a half turn; for any other angle it reverses the rotation.
        return None if angle in (0, 180) else rotate(self._parts.train.inputs.flip(-1), angle)

    def train_sizes(self, trial_seeds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        yield trial_seeds[0], 0, len(self._parts.train)  # the same in every task

    def keeps(self, key: Hashable) -> bool:
        # expensive to generate, and the same for every seed
        return True


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images counter-clockwise about their centre, with row 0 at the top.

    Interpolation is bilinear, with zeros outside the image, and results are rounded to the nearest integer. Rotations
    by multiples of 90 degrees are exact. The computation always runs on the CPU, so that training uses the same pixels
    on every device.

    Args:
        images: uint8, (N, C, H, W); H = W if `degrees` is an odd multiple of 90.
        degrees: the angle, any finite number.

    Returns:
        uint8, (N, C, H, W), on the device of `images`.
    """
    quarters, remainder = divmod(degrees, 90)
    if remainder == 0:
        assert quarters % 2 == 0 or images.shape[-2] == images.shape[-1], "a quarter turn needs square images"
        return torch.rot90(images, int(quarters) % 4, dims=(-2, -1)).contiguous()
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # `theta` is the inverse rotation, which maps positions in the result to the source. Coordinates range from -1 to 1
    # along each axis, which is why aspect ratios appear; y points down.
    theta = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = nn.functional.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
    turned = torch.empty(images.shape, dtype=torch.uint8)
    for source, target in zip(torch.split(images, _CHUNK), torch.split(turned, _CHUNK), strict=True):
        sampled = nn.functional.grid_sample(
            source.to("cpu", torch.float32),
            grid.expand(len(source), -1, -1, -1),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        # A weighted mean of bytes may exceed 0..255 by a rounding error, and a cast would wrap around.
        target.copy_(sampled.round_().clamp_(0, 255))
    return turned.to(images.device)
