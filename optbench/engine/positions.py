"""At which positions of sequences features are measured: a text has so many that some of them will do.

Legend: N sequences, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.streams import generator
from optbench.tasks import Examples

MOST = 8192
"""Positions of one task's test data: 128 times a width of 64, where ten times is enough for a rank. All measures of
them take .013 s on one core; of the 60,000 of a domain of `text-domains` .09 s, and they take seven times the memory.
"""


def sampled(examples: Examples, suite_seed: int) -> Tensor | None:
    """Ascending places of `MOST` targets among all N T of the sequences, drawn for a suite; None: all are few enough.

    They depend on N T alone, so features of the same text by two networks are of the same positions.
    """
    count = examples.targets.numel()
    if examples.positions == 1 or count <= MOST:
        return None
    draws = generator(suite_seed, None, "positions of features")
    return torch.randperm(count, generator=draws)[:MOST].sort().values.to(examples.targets.device)
