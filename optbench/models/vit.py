"""A small vision transformer: pre-norm attention blocks over the sequence of an image's patches.

Shapes: B images, T patches, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.kinds import Whole
from optbench.late import nn
from optbench.models.transformer import Transformer, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from optbench.data import InputSpec

STD = 0.02
"""Standard deviation of the initial positions (Dosovitskiy et al. 2021)."""
GRID = 8
"""Maximum number of patches per side with the default patch size."""


class Vit(Transformer):
    """Vision transformer with learnt positions, pre-norm blocks with GELU, and a linear head on the mean over patches.

    Images are split into squares of `patch` pixels per side, each mapped linearly to a token. There is no class token:
    features are the mean over patches of the last norm's output (Beyer et al. 2022). Queries, keys and values have
    separate matrices, so that matrix optimizers treat them separately.

    Initial weights follow the reference implementation: Glorot uniform in the blocks, LeCun truncated normal for the
    patch projection, N(0, .02²) for positions, and biases of 0. The head is an exception: its weights are LeCun
    truncated normal here, but 0 in the reference implementation. A matrix of zeros has no polar factor, has a
    norm of 0, to which steps cannot be scaled, and could never be changed by Powerpropagation.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; Beyer et al. 2022, arXiv:2205.01580.
    """

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        *,
        patch: Annotated[Whole, Field(ge=1)] | None = None,
        layers: Annotated[Whole, Field(ge=1, le=1000)] = 4,
        width: Annotated[Whole, Field(ge=1, le=100_000)] = 64,
        heads: Annotated[Whole, Field(ge=1, le=10_000)] = 4,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        """Build the network for images.

        patch: pixels per side of a patch; null for the smallest size that gives at most 8 patches per side, which is 4
            for images of 28x28 and 32x32 pixels and 2 for 14x14.
        dropout: probability of dropping elements of the embedding, of attention and of residual branches; above 0,
            members are trained one by one.

        Raises:
            ValueError: the inputs are not images, `patch` does not divide their sides, or `heads` does not divide
                `width`.
        """
        super().__init__()
        if len(inputs.shape) != 3:
            raise ValueError(f"expected images (channels, rows, columns), got inputs of shape {inputs.shape}")
        channels, height, columns = inputs.shape
        fits = [side for side in range(1, min(height, columns) + 1) if height % side == columns % side == 0]
        if patch is None:
            patch = next((side for side in fits if max(height, columns) <= GRID * side), fits[-1])
        elif patch not in fits:
            known = " or ".join(filter(None, (", ".join(map(str, fits[:-1])), str(fits[-1]))))
            raise ValueError(f"patch: expected a divisor of {height} rows and {columns} columns ({known}), got {patch}")
        self.patches = nn.Linear(channels * patch**2, width)
        self.positions = table((height // patch) * (columns // patch), width)
        self.stack(layers, width, heads, dropout)
        self.head = nn.Linear(width, outputs)
        self.patch, self.initialisation = patch, "truncated-normal"

    def draw(self, name: str, weights: Tensor, generator: torch.Generator) -> bool:
        if name.startswith("positions"):
            weights.normal_(0.0, STD, generator=generator)
        elif name.startswith("blocks") and "norm" not in name:
            if not name.endswith("bias"):
                nn.init.xavier_uniform_(weights, generator=generator)
        else:
            return False
        return True

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each block's GELU input, (B, T, 4d), and output, (B, T, d).

        The output of the last block is the mean over patches after the norm, (B, d).
        """
        for i, (before, found) in enumerate(self.read(self.patches(self._cut(x)) + self.positions.weight), 1):
            yield before, found if i < self.depth else found.mean(-2)

    def _cut(self, x: Tensor) -> Tensor:
        """Split images (B, C, H, W) into patches (B, T, C · patch²) row by row, each flattened channel by channel."""
        batch, channels, height, columns = x.shape
        size = self.patch
        cut = x.reshape(batch, channels, height // size, size, columns // size, size)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size**2)
