"""Text as tokens, and the windows of it that a network is shown: T + 1 tokens long, so that every input has a next.

Legend: n tokens of a text, N windows, T positions of a sequence (the context).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optbench.late import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


# Compared by identity, as `Split`.
@dataclass(frozen=True, eq=False)
class Text:
    """The tokens of one text, (n,) integers of any type, on the CPU, in three stretches that share nothing.

    Attributes:
        train: what windows are drawn from at random.
        validation, test: what is read in consecutive windows.
    """

    train: Tensor
    validation: Tensor
    test: Tensor


def consecutive_windows(tokens: Tensor, context: int) -> Tensor:
    """Return (N, T + 1) int64, a window every T tokens, so that each token but the first is a target once.

    What is left at the end is dropped. tokens: more than `context`.
    """
    count = (len(tokens) - 1) // context
    return tokens[: count * context + 1].long().unfold(0, context + 1, context)


def drawn_windows(tokens: Tensor, context: int, count: int, stream: Generator) -> Tensor:
    """Return (count, T + 1) int64: windows at random places, each place as likely, drawn with replacement."""
    first = torch.randint(len(tokens) - context, (count,), generator=stream)
    return tokens[first[:, None] + torch.arange(context + 1)].long()


def unigram_entropy(tokens: Tensor, token_bytes: Tensor) -> float:
    """Return the bits per byte of text that is predicted from how often each token occurs in it, and from nothing else.

    −Σ_v p_v log₂ p_v / Σ_v p_v b_v, where token v is a share p_v of `tokens` and stands for b_v bytes: what a network
    reaches that knows the frequencies of tokens and looks at no context. 0 to log₂ V per token (Shannon 1948).

    Args:
        tokens: (n,) integers in 0..V-1, n ≥ 1.
        token_bytes: int64 (V,), see `Dataset.token_bytes`.
    """
    share = torch.bincount(tokens.int(), minlength=len(token_bytes)).double() / len(tokens)
    nats = float(torch.special.entr(share).sum())
    return nats / math.log(2) / float(share @ token_bytes.double())
