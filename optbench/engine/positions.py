"""Positions of sequences at which features are measured: all of them, or a sample for long texts.

Legend: N sequences, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.streams import generator
from optbench.tasks import Examples

MOST = 8192
"""Maximum number of positions in each task's test data: 128 times a width of 64; a rank needs only ten times the width.
All metrics together take .013 s on one core. On all 60,000 positions of a domain of `text-domains` they take .09 s and
seven times the memory.
"""


def sampled(examples: Examples, suite_seed: int) -> Tensor | None:
    """Return ascending indices of `MOST` targets among all N T, drawn for a suite; None to use all.

    They depend only on N T, so features of the same text in two networks are read at the same positions.
    """
    count = examples.targets.numel()
    if examples.positions == 1 or count <= MOST:
        return None
    draws = generator(suite_seed, None, "positions of features")
    return torch.randperm(count, generator=draws)[:MOST].sort().values.to(examples.targets.device)
