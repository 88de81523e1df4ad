"""Parts that all transformers share: pre-norm blocks, each with attention and an MLP with GELU.

Shapes: B sequences, T positions, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from optbench.late import nn, torch
from optbench.models.network import Network
from optbench.precision import without_casts

if TYPE_CHECKING:
    from torch import Tensor


def block(width: int) -> nn.ModuleDict:
    """Build the layers of one block.

    Queries, keys and values have separate matrices, so that matrix optimizers treat them separately.
    """
    parts: dict[str, Callable[[], nn.Module]] = {
        "attention_norm": lambda: nn.LayerNorm(width),
        "query": lambda: nn.Linear(width, width),
        "key": lambda: nn.Linear(width, width),
        "value": lambda: nn.Linear(width, width),
        "attended": lambda: nn.Linear(width, width),
        "expand_norm": lambda: nn.LayerNorm(width),
        "expand": lambda: nn.Linear(width, 4 * width),
        "contract": lambda: nn.Linear(4 * width, width),
    }
    return nn.ModuleDict({name: make() for name, make in parts.items()})


def through(
    layers: nn.Module, stream: Tensor, heads: int, dropout: float, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the input of a block's GELU, (B, T, 4d), and the residual stream (B, T, d) after the block.

    layers: the block's layers, from `block`.
    dropout: probability of dropping elements of attention and of residual branches; must be 0 in eval mode.
    causal: whether each position attends only to itself and earlier positions.
    """
    assert isinstance(layers, nn.ModuleDict)
    x = layers["attention_norm"](stream)
    query, key, value = (
        layers[name](x).unflatten(-1, (heads, -1)).transpose(-3, -2) for name in ("query", "key", "value")
    )
    # Under autocast, queries, keys and values are already in bfloat16; in `torch.func`, parts of the attention function
    # would cast them again.
    with without_casts(x.device):
        found = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    stream = stream + dropped(layers["attended"](found.transpose(-3, -2).flatten(-2)), dropout)
    before = layers["expand"](layers["expand_norm"](stream))
    return before, stream + dropped(layers["contract"](nn.functional.gelu(before)), dropout)


class Transformer(Network):
    """A network whose hidden layers are pre-norm attention blocks; a norm follows the last block."""

    deep: ClassVar[bool] = True

    blocks: nn.ModuleList
    norm: nn.LayerNorm
    heads: int
    dropout: float

    def stack(self, layers: int, width: int, heads: int, dropout: float) -> None:
        """Build the blocks and the final norm; raise ValueError if `heads` does not divide the width."""
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.blocks = nn.ModuleList(block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.heads, self.dropout = heads, dropout

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def alone(self) -> str | None:
        return "dropout" if self.dropout else None

    def read(self, stream: Tensor, *, causal: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each block's GELU input, (B, T, 4d), and output, (B, T, d); the last output is normalised.

        stream: the embedded inputs, (B, T, d).
        """
        dropout = self.dropout if self.training else 0.0
        stream = dropped(stream, dropout)
        for i, layers in enumerate(self.blocks, 1):
            before, stream = through(layers, stream, self.heads, dropout, causal=causal)
            yield before, stream if i < self.depth else self.norm(stream)


def dropped(x: Tensor, dropout: float) -> Tensor:
    """Apply dropout to `x`, drawing random numbers only if `dropout` is above 0."""
    return nn.functional.dropout(x, dropout) if dropout else x


def table(count: int, width: int) -> nn.Embedding:
    """Build an embedding with uninitialised weights.

    On the meta device, initialising them would import torch._dynamo, which takes seconds.
    """
    return nn.Embedding(count, width, _weight=torch.empty(count, width))
