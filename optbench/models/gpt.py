"""A small GPT: a causal transformer that predicts the next token at every position.

Shapes: B sequences, T positions, d width, V vocabulary, H heads, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from optbench.kinds import Whole
from optbench.late import nn
from optbench.models.transformer import Transformer, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from optbench.data import InputSpec

STD = 0.02
"""Standard deviation of the initial weights (Radford et al. 2019)."""
RESIDUAL = ("attended", "contract")
"""Layers whose output is added to the residual stream, with initial weights smaller by a factor of √(2L)."""


class Gpt(Transformer):
    """Causal transformer over tokens, with pre-norm blocks, GELU, learned positions, and logits of the next token.

    Features are the output of the final norm, `width` numbers per position. Initial weights are those of GPT-2: N(0,
    .02²), biases 0, projections into the residual stream smaller by a factor of √(2 · layers) (Radford et al. 2019).
    Queries, keys and values have separate matrices, which optimizers for matrices treat separately.
    """

    reads_tokens: ClassVar[bool] = True

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        *,
        layers: Annotated[Whole, Field(ge=1, le=1000)] = 2,
        width: Annotated[Whole, Field(ge=1, le=100_000)] = 64,
        heads: Annotated[Whole, Field(ge=1, le=10_000)] = 4,
        context: Annotated[Whole, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        tied: bool = False,
    ) -> None:
        """Build the network.

        context: maximum number of tokens of a sequence; null: the length of the dataset's sequences.
        dropout: of the embedding, of attention and of residual branches; if above 0, members are trained one by one.
        tied: the head shares the embedding's matrix.

        Raises ValueError if the inputs are not sequences of tokens, or `context` or `heads` does not fit.
        """
        super().__init__()
        if inputs.vocabulary is None or len(inputs.shape) != 1:
            raise ValueError(f"expected sequences of tokens (positions,), got inputs of shape {inputs.shape}")
        (length,) = inputs.shape
        context = length if context is None else context
        if context < length:
            raise ValueError(f"context: expected at least {length}, the length of sequences, got {context}")
        if tied and inputs.vocabulary != outputs:
            raise ValueError(f"tied: expected as many outputs as tokens, got {outputs} and {inputs.vocabulary}")
        self.tokens = None if tied else table(inputs.vocabulary, width)
        self.positions = table(context, width)
        self.stack(layers, width, heads, dropout)
        self.head = nn.Linear(width, outputs, bias=False)

    def draw(self, name: str, weights: Tensor, generator: torch.Generator) -> bool:
        if "norm" in name:
            return False
        if not name.endswith("bias"):
            std = STD / math.sqrt(2 * self.depth) if name.split(".")[-2] in RESIDUAL else STD
            weights.normal_(0.0, std, generator=generator)
        return True

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each block the input of its GELU, (B, T, 4d), and its output (B, T, d), normalised in the last."""
        embedding = self.head if self.tokens is None else self.tokens
        stream = nn.functional.embedding(x, embedding.weight) + self.positions.weight[: x.shape[-1]]
        return self.read(stream, causal=True)
