"""Batch norm's running statistics for weights without training steps: averages, and points between two solutions.

Legend: P padded parameter count, Q floats of buffers, N examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from optbench.engine.evaluate import Evaluator
from optbench.engine.randomness import seeded
from optbench.tasks import Examples

EXAMPLES = 2000
"""Maximum number of examples for statistics, evenly spaced among those given."""
BATCH = 500
"""Maximum number per forward pass."""


def running(network: nn.Module) -> dict[str, _NormBase]:
    """Return the layers of a network with running statistics, by name, usually batch norm."""
    layers = network.named_modules()
    return {name: part for name, part in layers if isinstance(part, _NormBase) and part.running_mean is not None}


@torch.no_grad()
def reestimated(evaluator: Evaluator, row: Tensor, examples: Examples) -> Tensor:
    """Return `row` (P + Q,) with running statistics re-estimated on `examples`, usually from training.

    Running statistics belong to the weights at which they were collected: at others, such as an average, the network
    would be normalised incorrectly (Izmailov et al. 2018; Jordan et al. 2022, REPAIR). As in
    `torch.optim.swa_utils.update_bn`, they are means over batches of their means and (unbiased) variances, from a
    forward pass with everything else in eval mode. Every K-th example forms a batch, so that all tasks contribute to
    each. The same examples give the same bits. `row` is not modified, and returned if there are no statistics.
    """
    if not running(evaluator.network):
        return row
    network = evaluator.with_weights(row)
    layers = running(network)
    for layer in layers.values():
        layer.reset_running_stats()
        layer.train()
    count = min(examples.few(EXAMPLES), len(examples))
    chosen = torch.arange(count, device=examples.targets.device) * len(examples) // count
    seen, batches = 0, -(-count // BATCH)
    for k in range(batches):
        places = chosen[k::batches]
        seen += len(places)
        for layer in layers.values():
            layer.momentum = len(places) / seen  # batches are weighted by their size
        with seeded(0, row.device):  # a user's module may draw in eval mode, and modify its inputs in place
            network(evaluator.normalise(examples.inputs.index_select(0, places)))
    found = row.clone()
    views = evaluator.blueprint.layout.buffer_views(found)
    own = dict(network.named_buffers())
    for name in layers:
        for buffer in ("running_mean", "running_var"):
            view = views.get(place := f"{name}.{buffer}".lstrip("."))
            if view is not None:  # otherwise it is an alias of a shared buffer
                view.copy_(own[place])
    return found
