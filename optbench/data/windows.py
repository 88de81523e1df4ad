"""Tokenised texts, and windows of T + 1 tokens, which provide T inputs and their T next tokens.

Legend: n tokens of a text, N windows, T positions of a sequence (the context).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench.late import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


# compared by identity, like `Split`
@dataclass(frozen=True, eq=False)
class Text:
    """The tokens of one text, (n,) integers of any dtype, on the CPU, in three disjoint sections.

    Attributes:
        train: the section for random windows.
        validation, test: the sections for consecutive windows.
    """

    train: Tensor
    validation: Tensor
    test: Tensor


def consecutive_windows(tokens: Tensor, context: int) -> Tensor:
    """Return windows that start every T tokens, int64 (N, T + 1).

    All tokens in the windows except the first are targets, each exactly once. An incomplete last window is dropped.

    tokens: (n,), with n > `context`.
    """
    count = (len(tokens) - 1) // context
    return tokens[: count * context + 1].long().unfold(0, context + 1, context)


def drawn_windows(tokens: Tensor, context: int, count: int, stream: Generator) -> Tensor:
    """Draw windows (count, T + 1) int64 at uniformly random positions, with replacement."""
    first = torch.randint(len(tokens) - context, (count,), generator=stream)
    return tokens[first[:, None] + torch.arange(context + 1)].long()


def unigram_entropy(tokens: Tensor, token_bytes: Tensor) -> float:
    """Return the bits per byte needed to predict a text from its token frequencies alone.

    The value is (−Σ_v p_v log₂ p_v) / (Σ_v p_v b_v), where p_v is the relative frequency of token v in `tokens` and
    b_v its number of bytes. In bits per token, the entropy is between 0 and log₂ V (Shannon 1948).

    Args:
        tokens: (n,) integers in 0..V-1, n ≥ 1.
        token_bytes: int64 (V,), see `Dataset.token_bytes`.
    """
    share = torch.bincount(tokens.int(), minlength=len(token_bytes)).double() / len(tokens)
    nats = float(torch.special.entr(share).sum())
    return nats / math.log(2) / float(share @ token_bytes.double())
