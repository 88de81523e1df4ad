"""Network inputs made from corrupted versions of a task's test images.

Legend: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from optbench.data.corruption import Corruption, corrupt
from optbench.engine.batches import Normaliser
from optbench.streams import generator
from optbench.tasks import Examples


def corrupter(
    test: Examples, task: int, normalise: Normaliser, suite_seed: int
) -> Callable[[Corruption], Tensor] | None:
    """Return a function that maps a corruption to corrupted test inputs (N, C, H, W); None if inputs are not images.

    Noise and shifts depend only on the suite seed, the task and the corruption, so they are the same for every trial.
    Images of a permuted task are corrupted before the permutation.
    """
    if test.inputs.ndim != 4 or test.inputs.dtype == torch.int64:
        return None

    def made(corruption: Corruption) -> Tensor:
        draws = generator(suite_seed, None, f"corruption {corruption}/task {task}")
        if test.places is None:
            return normalise(corrupt(test.inputs, corruption, draws))
        places, rows = test.places.to(test.inputs.device), test.inputs.flatten(2)
        original = torch.empty_like(rows).index_copy_(2, places, rows)
        found = corrupt(original.view(test.inputs.shape), corruption, draws)
        return normalise(found.flatten(2).index_select(2, places).view(test.inputs.shape))

    return made
