"""Simple corruptions of images, after Hendrycks & Dietterich 2019 (arXiv:1903.12261).

Legend: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from optbench.late import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Generator, Tensor

Corruption = Literal[
    "noise-0.1", "noise-0.2", "noise-0.4", "shift-1", "shift-2", "shift-3", "contrast-0.5", "contrast-0.25", "blur-1"
]
"""The name of a corruption, which ends with its severity s. `noise`: Gaussian noise with a standard deviation of s
times the pixel range, clipped. `shift`: a shift by s pixels up, down, left or right, drawn for each image; the border
is filled with the lowest value. `contrast`: each channel's distance from its mean is multiplied by s. `blur`: a
Gaussian blur with a standard deviation of s pixels."""
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
_CHUNK = 2500  # images at a time: limits memory, and determines the random numbers for each image


def corrupt(images: Tensor, corruption: Corruption, generator: Generator) -> Tensor:
    """Return corrupted images with the dtype and device of `images`; the computation runs on the CPU.

    The pixel range is 0..255 for uint8 images, and from the minimum to the maximum of all images for float32. Results
    of dtype uint8 are rounded.

    Args:
        images: uint8 or float32, (N, C, H, W).
        generator: a CPU generator.
    """
    name, _, severity = corruption.partition("-")
    change = _CHANGES[name]
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else (float(images.min()), float(images.max()))
    spread = (high - low) or 1.0
    found = torch.empty(images.shape, dtype=images.dtype)
    for source, target in zip(torch.split(images, _CHUNK), torch.split(found, _CHUNK), strict=True):
        changed = change((source.cpu().float() - low) / spread, float(severity), generator).clamp_(0, 1)
        changed = changed.mul_(spread).add_(low)
        target.copy_(changed.round_() if images.dtype == torch.uint8 else changed)
    return found.to(images.device)


def _noise(x: Tensor, deviation: float, generator: Generator) -> Tensor:
    return x + deviation * torch.randn(x.shape, generator=generator)


def _shift(x: Tensor, by: float, generator: Generator) -> Tensor:
    size, found = int(by), torch.zeros_like(x)
    directions = torch.randint(4, (len(x),), generator=generator)
    there, back = slice(size, None), slice(None, -size)
    for direction, (rows, columns) in enumerate([(True, False), (True, True), (False, False), (False, True)]):
        chosen = directions == direction
        target, source = (back, there) if columns else (there, back)
        of_target, of_source = ((target, slice(None)), (source, slice(None)))
        if not rows:
            of_target, of_source = of_target[::-1], of_source[::-1]
        moved = torch.zeros_like(x[chosen])
        moved[:, :, *of_target] = x[chosen][:, :, *of_source]
        found[chosen] = moved
    return found


def _contrast(x: Tensor, factor: float, _: Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def _blur(x: Tensor, deviation: float, _: Generator) -> Tensor:
    radius = int(3 * deviation)
    window = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)
    window = (window / window.sum()).expand(x.shape[1], 1, -1)
    convolve = partial(torch.nn.functional.conv2d, groups=x.shape[1])
    padded = torch.nn.functional.pad(x, (radius,) * 4, mode="replicate")
    return convolve(convolve(padded, window[:, :, :, None]), window[:, :, None, :])


_CHANGES: Mapping[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "noise": _noise,
    "shift": _shift,
    "contrast": _contrast,
    "blur": _blur,
}
