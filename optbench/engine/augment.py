"""Random mirroring and cropping of training images, with one gather operation per batch on the images' device.

Images are mirrored before they are cropped. Crops are padded with zeros, which are black because images are normalised
later. In permuted tasks, pixels are permuted after the augmentation. In rotation tasks, an image is rotated between
mirroring and cropping, because mirroring a rotated image would reverse the direction of rotation.

Legend: S streams, B batch size, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optbench.suite.protocol import Augment
from optbench.tasks import Examples

OUTSIDE = -(2**40)
"""Index that represents a row or column outside the image. Its sum with any other index is negative."""


class Augmenter:
    """Augments batches from one or more streams, whose images all have the same shape.

    An image's augmentation is an integer below `augment.ways`, drawn by the image's `BatchStream`, so it does not
    depend on the device or on the rest of the batch.
    """

    def __init__(self, augment: Augment, examples: Sequence[Examples]) -> None:
        """examples: the examples of each stream."""
        height, width = examples[0].inputs.shape[-2:]
        device, crop = examples[0].inputs.device, augment.crop
        shifts = torch.arange(2 * crop + 1)[:, None] - crop
        rows, columns = shifts + torch.arange(height), shifts + torch.arange(width)
        rows = torch.where((rows >= 0) & (rows < height), rows * width, OUTSIDE)
        columns = torch.where((columns >= 0) & (columns < width), columns, OUTSIDE)
        # Mirror images provided by the task are used as they are, and cropped like other images.
        self.has_mirrored = examples[0].mirrored is not None
        mirrored = columns if self.has_mirrored else torch.where(columns >= 0, width - 1 - columns, OUTSIDE)
        self._shifts = len(shifts)
        self._rows = rows.to(device)  # (2 crop + 1, H)
        self._columns = torch.cat([columns, mirrored]).to(device)  # (2 (2 crop + 1), W)
        places = [one.places for one in examples if one.places is not None]
        assert len(places) in (0, len(examples)), "streams of one task"
        self._places = torch.stack(places).to(device)[:, None] if places else None  # (S, 1, H W)
        self._stored = None if self._places is None else self._places.argsort(-1)  # where each pixel is stored

    def __call__(self, images: Tensor, ways: Tensor) -> Tensor:
        """Return augmented images in new memory.

        images: (S B, C, H, W); if `has_mirrored`, the result of `mirrored`. ways: (S B,), each image's augmentation.
        """
        flip, shift = ways // self._shifts**2, ways % self._shifts**2
        down, right = shift // self._shifts, shift % self._shifts
        columns = self._columns.index_select(0, flip * self._shifts + right)
        source = (self._rows.index_select(0, down)[:, :, None] + columns[:, None, :]).flatten(1)  # (S B, H W)
        if self._places is not None and self._stored is not None:
            source = self._of_stored(source.view(len(self._places), -1, source.shape[1]), self._places, self._stored)
        inside = source >= 0
        pixels = images.flatten(2)
        taken = pixels.gather(2, source.clamp_(min=0)[:, None].expand_as(pixels))
        return taken.mul_(inside[:, None]).view(images.shape)

    @staticmethod
    def _of_stored(source: Tensor, places: Tensor, stored: Tensor) -> Tensor:
        """Convert pixel positions (S, B, H W) in the original images to positions (S B, H W) in the permuted images."""
        source = source.gather(2, places.expand_as(source))
        moved = stored.expand_as(source).gather(2, source.clamp(min=0))
        return torch.where(source >= 0, moved, OUTSIDE).flatten(0, 1)

    def mirrored(self, images: Tensor, mirrored: Tensor, ways: Tensor) -> Tensor:
        """Return images (S B, C, H, W), from `mirrored` where `ways` (S B,) include mirroring, else from `images`."""
        flip = (ways >= self._shifts**2).view(-1, *(1,) * (images.ndim - 1))
        return torch.where(flip, mirrored, images)
