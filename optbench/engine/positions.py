"""Positions of sequences at which features are measured, a sample for long texts.

Legend: N sequences, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.streams import generator
from optbench.tasks import Examples

MOST = 8192
"""Positions per task's test data: 128 times a width of 64, where ten times suffice for a rank. All metrics of them take
.013 s on one core; with the 60,000 positions of a domain of `text-domains`, .09 s and seven times the memory.
"""


def sampled(examples: Examples, suite_seed: int) -> Tensor | None:
    """Return ascending indices of `MOST` targets among all N T, drawn for a suite; None to use all.

    They depend only on N T, so that features of the same text by two networks are from the same positions.
    """
    count = examples.targets.numel()
    if examples.positions == 1 or count <= MOST:
        return None
    draws = generator(suite_seed, None, "positions of features")
    return torch.randperm(count, generator=draws)[:MOST].sort().values.to(examples.targets.device)
