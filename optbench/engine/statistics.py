"""Batch norm's running statistics at weights that no step was taken at: averages, and points between two solutions.

Legend: P padded parameter count, Q floats that buffers take, N examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from optbench.engine.evaluate import Evaluator
from optbench.engine.randomness import seeded
from optbench.tasks import Examples

EXAMPLES = 2000
"""The most examples that statistics are estimated on, evenly spread over those given."""
BATCH = 500
"""The most in one forward pass."""


def running(network: nn.Module) -> dict[str, _NormBase]:
    """The layers of a network that keep running statistics, by name: batch norm, in the usual case."""
    layers = network.named_modules()
    return {name: part for name, part in layers if isinstance(part, _NormBase) and part.running_mean is not None}


@torch.no_grad()
def reestimated(evaluator: Evaluator, row: Tensor, examples: Examples) -> Tensor:
    """Return `row` (P + Q,) with the running statistics of its weights on `examples`, training ones as a rule.

    Running statistics belong to the weights they were gathered at: at others, such as an average of several, the
    network would be normalised by numbers that are not its own (Izmailov et al. 2018; Jordan et al. 2022, REPAIR). As
    `torch.optim.swa_utils.update_bn`: the mean over batches of their means and (unbiased) variances, in a forward pass
    of which nothing else is in training mode. Every K-th example is a batch, so that of several tasks each has its
    share. The same examples give the same bits. `row` stays as it is, and is returned where nothing is running.
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
            layer.momentum = len(places) / seen  # batches count by their size
        with seeded(0, row.device):  # a user's module may draw in eval mode, and work on its inputs in place
            network(evaluator.normalise(examples.inputs.index_select(0, places)))
    found = row.clone()
    views = evaluator.blueprint.layout.buffer_views(found)
    own = dict(network.named_buffers())
    for name in layers:
        for buffer in ("running_mean", "running_var"):
            view = views.get(place := f"{name}.{buffer}".lstrip("."))
            if view is not None:  # else it is another name of a buffer that layers share
                view.copy_(own[place])
    return found
