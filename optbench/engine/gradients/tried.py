"""Tests of whether `torch.func` can train members together: two members are trained together and separately."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.blueprint import PROBED, Blueprint
from optbench.engine.faults import of_the_machine
from optbench.engine.gradients.bound import Bound
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.passes import Passes
from optbench.engine.randomness import kept
from optbench.engine.recording import Recordings
from optbench.engine.stack import same_bits
from optbench.errors import spoken
from optbench.suite.protocol import Precision
from optbench.tasks import Examples

STEPS = 3
RATE = 0.01
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Maximum difference between a member's gradients computed both ways, relative to the gradient computed for the member
alone (Euclidean norms over all parameters)."""
FEW = 16
"""Number of training examples in each batch when bits are compared."""


def together_refused(
    blueprint: Blueprint, examples: Examples, normalise: Normaliser, suite_seed: int, precision: Precision = "float32"
) -> str | None:
    """Return why `torch.func` cannot train a model's members together on the device of `normalise`; None if it can."""
    try:
        for together, alone in _gradients(blueprint, examples, normalise, suite_seed, precision, PROBED):
            difference = torch.linalg.norm(together - alone, dim=1)
            if not bool((difference <= TOLERANCE[precision] * torch.linalg.norm(alone, dim=1)).all()):
                return "gradients computed in lock-step differ from those computed for each network alone"
    except Exception as error:  # `torch.func` raises many kinds of exceptions
        if of_the_machine(error):
            raise
        return f"{type(error).__name__} in lock-step: {' '.join(spoken(error).split())[:120]}"
    return None


def together_alike(
    blueprint: Blueprint, examples: Examples, normalise: Normaliser, suite_seed: int, precision: Precision = "float32"
) -> int | None:
    """Return how many bytes per example a member keeps for the backward pass; None if `torch.func` must not be used.

    `torch.func` must not be used if it changes bits, raises an exception, or warns that it loops over members.

    The gradients of `torch.func` are compared with those of each member alone, on a few examples.
    """
    found = [0]

    def pack(tensor: Tensor) -> Tensor:
        found[0] += tensor.nbytes
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    steps = _gradients(blueprint, examples, normalise, suite_seed, precision, FEW, saving)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*performance drop")  # PyTorch would loop over members, slowly
        try:
            if not all(same_bits(together, alone) for together, alone in steps):
                return None
        except Exception as error:
            if of_the_machine(error):
                raise
            return None
    return found[0] // (STEPS * 2 * min(FEW, len(examples)))


def _gradients(
    blueprint: Blueprint,
    examples: Examples,
    normalise: Normaliser,
    suite_seed: int,
    precision: Precision,
    size: int,
    around: AbstractContextManager[object] = contextlib.nullcontext(),  # noqa: B008  # it has no state
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the gradients (2, P) of `torch.func` and those computed member by member, at each step of gradient descent.

    `STEPS` steps are taken with two members, which are created for the test. They have different weights and different
    batches of `size` examples.
    around: a context manager, entered at each step around the member-by-member computation.
    """
    device, layout, network = normalise.scale.device, blueprint.layout, blueprint.network
    few = examples.select(torch.arange(min(2 * size, len(examples)), device=examples.targets.device))
    size = min(size, len(few))
    rows = [layout.pack(blueprint.start(suite_seed, seed)).to(device) for seed in range(2)]
    passes = []
    if not blueprint.ours:
        passes = [Passes(copy.deepcopy(network), layout, row, lambda step, evaluation: 0) for row in rows]
    streams = [BatchStream(few, size, suite_seed, seed, task=0) for seed in range(2)]
    weights = torch.stack([layout.weights(row) for row in rows])
    both, single = (Bound(weights, torch.zeros_like(weights), streams, passes, precision=precision) for _ in range(2))
    losses = torch.zeros(2, device=device)
    with kept(device):
        together = TogetherGradients(Vmap(network, layout, both), both, normalise, Recordings(None))
        alone = LoopGradients(network, layout, BatchBuffer(size, normalise), single)
        for step in range(STEPS):
            together(step, losses)
            with around:
                raised = alone(step, losses)
            for failure in raised.values():
                raise failure.error
            yield both.grads, single.grads
            with torch.no_grad():
                weights.sub_(single.grads, alpha=RATE)
