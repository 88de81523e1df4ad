"""A dataset in memory: images as they were published, nothing scaled.

Shapes: N examples, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


# Compared by identity: element-wise `==` of tensors has no single truth value.
@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test half of a dataset, in published order, on the CPU.

    Attributes:
        images: uint8, (N, C, H, W), pixels in 0..255.
        labels: int64, (N,), in 0..classes-1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named dataset.

    Attributes:
        name: its name in `DATASETS`.
        train, test: the two halves.
        classes: the number of classes.
        mean, std: per channel, over all training pixels scaled to [0, 1]; to four digits, as published ones are.
    """

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def without_pixels(self) -> Dataset:
        """Return the dataset with images of one pixel, zero: its labels, in little memory."""
        halves = [
            Split(half.images.new_zeros(len(half), len(self.mean), 1, 1), half.labels)
            for half in (self.train, self.test)
        ]
        return replace(self, train=halves[0], test=halves[1])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width
