"""A small GPT: a causal transformer that predicts the next token at every position.

Shapes: B sequences, T positions, d width, L layers.
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
"""Layers whose output is added to the residual stream; their initial weights are smaller by a factor of √(2L)."""


class Gpt(Transformer):
    """Causal transformer that predicts the next token, with pre-norm blocks, GELU and learnt positions.

    Features are the output of the final norm, `width` numbers per position. As in GPT-2 (Radford et al. 2019), initial
    weights are drawn from N(0, .02²) and biases are 0; weights of projections into the residual stream are smaller by a
    factor of √(2 · layers). Queries, keys and values have separate matrices, so that matrix optimizers treat them
    separately.
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

        context: maximum number of tokens in a sequence; null for the length of the dataset's sequences.
        dropout: probability of dropping elements of the embedding, of attention and of residual branches; above 0,
            members are trained one by one.
        tied: whether the head shares the embedding's matrix.

        Raises:
            ValueError: the inputs are not sequences of tokens, `context` is shorter than a sequence, `heads` does not
                divide `width`, or `tied` is set but the numbers of outputs and tokens differ.
        """
        super().__init__()
        if inputs.vocabulary is None or len(inputs.shape) != 1:
            raise ValueError(f"expected sequences of tokens (positions,), got inputs of shape {inputs.shape}")
        (length,) = inputs.shape
        context = length if context is None else context
        if context < length:
            raise ValueError(f"context: expected at least the sequence length ({length}), got {context}")
        if tied and inputs.vocabulary != outputs:
            raise ValueError(
                f"tied: expected as many outputs as tokens, got {outputs} outputs and {inputs.vocabulary} tokens"
            )
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
        """Yield each block's GELU input, (B, T, 4d), and output, (B, T, d); the last output is normalised."""
        embedding = self.head if self.tokens is None else self.tokens
        stream = nn.functional.embedding(x, embedding.weight) + self.positions.weight[: x.shape[-1]]
        return self.read(stream, causal=True)
