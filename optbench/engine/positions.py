"""The positions of sequences at which features are measured: all of them, or a sample for long texts.

Legend: N sequences, T positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optbench.streams import generator
from optbench.tasks import Examples

MOST = 8192
"""Maximum number of positions that are measured in each task's test data.

For a width of 64, this is 128 times the width; a rank needs only ten times the width. At these positions, all metrics
together take 0.013 s on one core. At all 60,000 positions of a domain in `text-domains`, they would take 0.09 s and
seven times the memory.
"""


def sampled(examples: Examples, suite_seed: int) -> Tensor | None:
    """Return ascending indices of `MOST` of the N·T targets, drawn at random; None if all targets are used.

    The indices depend only on the suite seed and N·T, so all networks are measured at the same positions of a text.
    """
    count = examples.targets.numel()
    if examples.positions == 1 or count <= MOST:
        return None
    draws = generator(suite_seed, None, "positions of features")
    return torch.randperm(count, generator=draws)[:MOST].sort().values.to(examples.targets.device)
