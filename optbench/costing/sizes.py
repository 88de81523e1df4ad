"""The networks on which optimizers are measured, by name. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Size:
    """A transformer, and the batch on which its gradients are computed.

    what: description for reports.
    context: number of tokens per sequence.
    batch: number of sequences.
    masked: fraction of tokens that are predicted; 1 for next-token prediction.
    """

    name: str
    what: str
    family: Literal["gpt", "bert"]
    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    batch: int
    masked: float = 1.0

    @property
    def tokens(self) -> int:
        """Number of tokens in a batch."""
        return self.batch * self.context

    def with_batch(self, batch: int) -> Size:
        """Return the same network with a batch of `batch` sequences."""
        return Size(**{**vars(self), "batch": batch})


SIZES: Mapping[str, Size] = {
    size.name: size
    for size in (
        Size("tiny", "the gpt of the suite 'text', on bytes", "gpt", 2, 64, 4, 128, 128, 16),
        Size("small", "gpt on bytes", "gpt", 6, 384, 6, 128, 256, 8),
        # Devlin et al. 2019, arXiv:1810.04805; sequences of 128 tokens, as in most steps of their pre-training.
        Size("bert-base", "BERT-base with its pre-training heads", "bert", 12, 768, 12, 30_522, 128, 4, masked=0.15),
    )
}
