"""Whether a user's model can be trained in lock-step, found out by training two of it, together and each alone.

Legend: P padded parameter count.
"""

from __future__ import annotations

import copy

import torch

from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.blueprint import PROBED, Blueprint
from optbench.engine.faults import of_the_machine
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.passes import Passes
from optbench.engine.recording import Recordings
from optbench.errors import spoken
from optbench.tasks import Examples

STEPS = 3
RATE = 0.01
TOLERANCE = 1e-3
"""Of the difference of two gradients, relative to the gradient alone (Euclidean norms over all parameters)."""


def together_refused(blueprint: Blueprint, examples: Examples, normalise: Normaliser, suite_seed: int) -> str | None:
    """Why `torch.func` cannot train members of this model together on the device of `normalise`; None if it can.

    Two members with different weights take a few steps of gradient descent on a few training examples.
    """
    device, layout, network = normalise.scale.device, blueprint.layout, blueprint.network
    few = examples.select(torch.arange(min(2 * PROBED, len(examples)), device=examples.targets.device))
    size = min(PROBED, len(few))
    rows = [layout.pack(blueprint.start(suite_seed, seed)).to(device) for seed in range(2)]
    passes = [Passes(copy.deepcopy(network), layout, row, lambda step, evaluation: 0) for row in rows]
    streams = [BatchStream(few, size, suite_seed, seed, task=0) for seed in range(2)]
    weights = torch.stack([layout.weights(row) for row in rows])
    both, single = (Bound(weights, torch.zeros_like(weights), streams, passes) for _ in range(2))
    losses = torch.zeros(2, device=device)
    try:
        together = TogetherGradients(Vmap(network, layout, both), both, normalise, Recordings(None))
        alone = LoopGradients(network, layout, BatchBuffer(size, normalise), single)
        for step in range(STEPS):
            together(step, losses)
            for raised in alone(step, losses).values():
                raise raised.error
            difference = torch.linalg.norm(both.grads - single.grads, dim=1)
            if not bool((difference <= TOLERANCE * torch.linalg.norm(single.grads, dim=1)).all()):
                return "its gradients in lock-step differ from those alone"
            with torch.no_grad():
                weights.sub_(single.grads, alpha=RATE)
    except Exception as error:  # `torch.func` refuses in many ways
        if of_the_machine(error):
            raise
        return f"{type(error).__name__} in lock-step: {' '.join(spoken(error).split())[:120]}"
    return None
