"""Losses and gradients of all members of a cohort, four ways that agree.

| module         | for              | how                                                                     |
|----------------|------------------|-------------------------------------------------------------------------|
| `mlp`          | plain MLPs, CPU  | forward and backward written out, member after member, no allocation    |
| `loop`         | any network, CPU | autograd, member after member; on any device where the network needs it |
| `mlp_together` | plain MLPs, GPU  | forward and backward written out, one call for all members              |
| `vmap`         | any network, GPU | `torch.func`, one call for all members; on a CPU as `chosen` has it     |

On one CPU thread a batched product is no faster than the products one by one (it is a loop inside the library), while
one member at a time keeps that member's weights and gradients in the cache; what batching saves there is the cost of
calling the framework, and the hand-written path saves more of it. It also makes bit-identity plain: a member's
arithmetic does not depend on how many others there are. On a GPU the opposite holds, and batching is everything.

In all of them, members that share a stream (those of one seed) share its batches: taken once a step.
"""

from __future__ import annotations

from torch import nn

from optbench.engine.batches import BatchBuffer
from optbench.engine.gradients.bound import Bound, Gradients, GradientsFactory
from optbench.engine.gradients.chosen import Choice, ChosenGradients
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.mlp import MlpGradients
from optbench.engine.gradients.mlp_together import MlpTogether
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout

__all__ = ["Bound", "Choice", "Gradients", "GradientsFactory", "MlpGradients", "gradients_for"]


def gradients_for(
    network: nn.Module,
    layout: Layout,
    buffer: BatchBuffer,
    recordings: Recordings,
    *,
    together: bool,
    choice: Choice | None = None,
) -> GradientsFactory:
    """The fastest way for this network.

    together: one call for all members, as an accelerator needs it. choice: of a network for which `torch.func` may be
    taken on a CPU, too; None: it may not.
    """
    written_out = MlpGradients.supports(network)
    if together:
        way = MlpTogether if written_out else Vmap
        return lambda bound: TogetherGradients(way(network, layout, bound), bound, buffer.normalise, recordings)
    each = MlpGradients if written_out else LoopGradients

    def gradients(bound: Bound) -> Gradients:
        if choice is not None and choice.open(len(bound.streams), bound.streams[0].batch_size):
            return ChosenGradients(network, layout, buffer, bound, choice)
        return each(network, layout, buffer, bound)

    return gradients
