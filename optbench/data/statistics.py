"""Mean and standard deviation of inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 2048


def statistics(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and population standard deviation, per channel for images (N, C, H, W), else over all values.

    uint8 inputs are scaled to [0, 1], and their statistics are rounded to four decimal places as in the literature,
    e.g. 0.1307 and 0.3081 for MNIST. Their sums are integers, and therefore exact and the same on every machine. A
    deviation of 0 is returned as 1.

    Args:
        inputs: uint8 or float32, (N, ...), with N ≥ 1.
    """
    channels = inputs.shape[1] if inputs.ndim == 4 else 1
    if inputs.dtype != torch.uint8:
        rows = inputs.reshape(len(inputs), channels, -1).double()
        mean, std = rows.mean((0, 2)), rows.std((0, 2), correction=0)
        return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())
    count = inputs.numel() // channels
    totals = torch.zeros(channels, dtype=torch.int64)
    squares = torch.zeros(channels, dtype=torch.int64)
    for chunk in torch.split(inputs, _CHUNK):
        wide = chunk.reshape(len(chunk), channels, -1).to(torch.int32)
        totals += wide.sum(dim=(0, 2), dtype=torch.int64)
        squares += wide.square().sum(dim=(0, 2), dtype=torch.int64)
    means, deviations = [], []
    for total, square in zip(totals.tolist(), squares.tolist(), strict=True):
        means.append(round(total / count / 255, 4))
        deviations.append(round(math.sqrt((count * square - total * total) / count**2) / 255, 4) or 1.0)
    return tuple(means), tuple(deviations)
