"""Re-estimation of batch norm's running statistics at weights that training does not visit, such as averages.

Legend: P padded parameter count, Q padded size of the buffers in floats, N examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from optbench.engine.evaluate import Evaluator
from optbench.engine.randomness import seeded
from optbench.tasks import Examples

EXAMPLES = 2000
"""Maximum number of examples for statistics, evenly spaced in the given data."""
BATCH = 500
"""Maximum number of examples per forward pass."""


def running(network: nn.Module) -> dict[str, _NormBase]:
    """Return the layers of a network that have running statistics (usually batch norm), by name."""
    layers = network.named_modules()
    return {name: part for name, part in layers if isinstance(part, _NormBase) and part.running_mean is not None}


@torch.no_grad()
def reestimated(evaluator: Evaluator, row: Tensor, examples: Examples) -> Tensor:
    """Return `row` (P + Q,) with running statistics re-estimated on `examples`, usually training examples.

    Running statistics belong to the weights at which they were collected. At other weights, such as an average, they
    would normalise activations incorrectly (Izmailov et al. 2018; Jordan et al. 2022, REPAIR). As in
    `torch.optim.swa_utils.update_bn`, the new statistics are averages over batches of the batch means and (unbiased)
    variances. Batches are run through the network with only the layers that have running statistics in training mode.

    With K batches, every K-th example is in the same batch, so if examples of several tasks are concatenated, all tasks
    contribute to each batch. The same examples give the same bits. `row` is not modified; it is returned unchanged if
    the network has no running statistics.
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
        with seeded(0, row.device):  # a user's module may draw random numbers even in eval mode
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
