"""Average pooling of a dataset's images: smaller inputs for long task sequences and expensive optimizers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from optbench.data.dataset import Dataset, Split

_CHUNK = 4096  # images at a time: limits the integer copy to about 13 MB for MNIST


def average_pooled(dataset: Dataset, side: int) -> Dataset:
    """Return the dataset with images of `side` × `side` pixels, where each pixel is the mean of a square block.

    Means are rounded to the nearest integer, halves up, so that inputs stay uint8 and are the same on every machine.
    `normalisation: standard` uses the statistics of the pooled training images, whose pixels vary less than
    those of the original images.
    """
    rows, columns = dataset.train.inputs.shape[-2:]
    assert rows == columns, "built-in datasets have square images"
    assert rows % side == 0, "checked where suites are read"
    train, test = (Split(_pooled(half.inputs, side), half.targets) for half in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test, mean=None, std=None)


def _pooled(images: Tensor, side: int) -> Tensor:
    """Pool uint8 images (N, C, H, H) to uint8 images (N, C, side, side)."""
    block = images.shape[-1] // side
    pooled = images.new_empty(*images.shape[:2], side, side)
    for source, target in zip(torch.split(images, _CHUNK), torch.split(pooled, _CHUNK), strict=True):
        total = source.reshape(*source.shape[:2], side, block, side, block).sum((3, 5), dtype=torch.int32)
        target.copy_((2 * total + block * block).div(2 * block * block, rounding_mode="floor"))
    return pooled
