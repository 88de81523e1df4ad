"""A small GPT: a causal transformer that predicts the next token at every position.

Shapes: B sequences, T positions, d width, V vocabulary, H heads, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from optbench.kinds import Whole
from optbench.late import nn, torch
from optbench.models.network import Network

if TYPE_CHECKING:
    from torch import Tensor

    from optbench.data import InputSpec

STD = 0.02
"""Standard deviation of the initial weights (Radford et al. 2019)."""
RESIDUAL = ("attended", "contract")
"""Layers whose output is added to the residual stream: their initial weights are smaller by √(2L)."""


class Gpt(Network):
    """Causal transformer over tokens: pre-norm, GELU, learned positions, the next token's logits at each position.

    Features are the input of the head, the output of the final norm: one of width `width` per position. Initial weights
    are GPT-2's: N(0, .02²), biases 0, projections into the residual stream smaller by √(2 · layers) (Radford et al.
    2019). Queries, keys and values have a matrix each, so that an optimizer of matrices sees each by itself.
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
        """Make the network for sequences of at most `context` tokens; null: as long as the dataset's.

        dropout: of the embedding, of attention and of what is added to the residual stream; above 0 members are trained
        one by one. tied: the head's matrix is the embedding, too.

        Raises ValueError if the inputs are no sequences of tokens, or `context` or `heads` does not fit.
        """
        super().__init__()
        if inputs.vocabulary is None or len(inputs.shape) != 1:
            raise ValueError(f"expected sequences of tokens (positions,), got inputs of shape {inputs.shape}")
        (length,) = inputs.shape
        context = length if context is None else context
        if context < length:
            raise ValueError(f"context: expected at least {length}, the tokens of a sequence, got {context}")
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        if tied and inputs.vocabulary != outputs:
            raise ValueError(f"tied: expected as many outputs as tokens, got {outputs} and {inputs.vocabulary}")
        self.tokens = None if tied else _table(inputs.vocabulary, width)
        self.positions = _table(context, width)
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
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({name: make() for name, make in parts.items()}) for _ in range(layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs, bias=False)
        self.heads, self.dropout = heads, dropout

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def draws(self) -> bool:
        return self.dropout > 0

    def deviation(self, name: str) -> float | None:
        if "norm" in name:
            return None
        if name.endswith("bias"):
            return 0.0
        return STD / math.sqrt(2 * self.depth) if name.split(".")[-2] in RESIDUAL else STD

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each block what goes into its GELU, (B, T, 4d), and its output (B, T, d); of the last behind the norm."""
        embedding = self.head if self.tokens is None else self.tokens
        stream = nn.functional.embedding(x, embedding.weight) + self.positions.weight[: x.shape[-1]]
        stream = self._dropped(stream)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, nn.ModuleDict)
            attended = self._attention(block, block["attention_norm"](stream))
            stream = stream + self._dropped(block["attended"](attended))
            before = block["expand"](block["expand_norm"](stream))
            stream = stream + self._dropped(block["contract"](nn.functional.gelu(before)))
            yield before, stream if i < self.depth - 1 else self.norm(stream)

    def _attention(self, block: nn.ModuleDict, x: Tensor) -> Tensor:
        """What the heads of a block make of (B, T, d), side by side: each position sees itself and those before it."""
        query, key, value = (
            block[name](x).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for name in ("query", "key", "value")
        )
        dropout = self.dropout if self.training else 0.0
        # Under autocast the three are in bfloat16 already; in `torch.func` it would cast parts of the function again.
        with torch.autocast(x.device.type, enabled=False):
            found = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return found.transpose(-3, -2).flatten(-2)

    def _dropped(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x


def _table(count: int, width: int) -> nn.Embedding:
    """An embedding without weights of its own: drawing them on the meta device imports torch._dynamo, for seconds."""
    return nn.Embedding(count, width, _weight=torch.empty(count, width))
