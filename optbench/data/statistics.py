"""Mean and standard deviation of pixels, per channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 2048


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation per channel, of pixels scaled to [0, 1], rounded to four digits.

    Four digits is how the literature gives them: MNIST's are .1307 and .3081. The sums are of integers, hence
    exact and the same on every machine.

    Args:
        images: uint8, (N, C, H, W), with N ≥ 1.
    """
    channels = images.shape[1]
    count = images.numel() // channels
    totals = torch.zeros(channels, dtype=torch.int64)
    squares = torch.zeros(channels, dtype=torch.int64)
    for chunk in torch.split(images, _CHUNK):
        wide = chunk.to(torch.int32)
        totals += wide.sum(dim=(0, 2, 3), dtype=torch.int64)
        squares += wide.square().sum(dim=(0, 2, 3), dtype=torch.int64)
    means, deviations = [], []
    for total, square in zip(totals.tolist(), squares.tolist(), strict=True):
        means.append(round(total / count / 255, 4))
        deviations.append(round(math.sqrt((count * square - total * total) / count**2) / 255, 4))
    return tuple(means), tuple(deviations)
