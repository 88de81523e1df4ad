"""Plain PyTorch training with the recipe of a `protocol`: one trial, a loop, and PyTorch's own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from optbench.data import Dataset
from optbench.engine.batches import BatchStream, Normaliser
from optbench.models import build, cross_entropy, initialise
from optbench.streams import generator
from optbench.suite import Suite
from optbench.tasks import TaskFamily

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def train_plain(
    suite: Suite,
    dataset: Dataset,
    make: Make,
    *,
    seed: int = 0,
    clip_norm: float | None = None,
    autocast: bool = False,
    after_step: Callable[[nn.Module], object] = lambda network: None,
) -> nn.Module:
    """Train one trial of the small suite for all epochs of all tasks, without early stopping; return the network.

    after_step: called with the network after each step. Gradients are clipped at every evaluation of a closure.
    """
    protocol = suite.experiments["small"].protocol
    family = TaskFamily(suite.experiments["small"].tasks, dataset, protocol, suite.seed, torch.device("cpu"))
    sequence = family.sequence(seed)
    ours = build(suite.experiments["small"].models["net"], family.inputs, family.classes)
    start = initialise(ours, generator(suite.seed, seed, "initial weights"))
    network: nn.Module = ours.to_empty(device="cpu")
    network.load_state_dict(start)
    optimizer = make(network.parameters())
    normalise = Normaliser.of(dataset, protocol, torch.device("cpu"))
    for task in range(family.count):
        examples = sequence.train(task)
        stream = BatchStream(examples, protocol.batch_size, suite.seed, seed, task)
        for step in range(round(protocol.max_epochs * stream.steps_per_epoch)):
            rows = stream.indices(step)

            def closure(inputs: Tensor = examples.inputs[rows], targets: Tensor = examples.targets[rows]) -> Tensor:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    logits = network(normalise(inputs))
                loss = cross_entropy(logits.float(), targets)
                loss.backward()
                if clip_norm is not None:
                    clip_grad_norm_(network.parameters(), clip_norm)
                return loss

            closure()
            optimizer.step(closure)
            after_step(network)
    return network
