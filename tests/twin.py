"""The slow twin of the engine: a plain PyTorch loop for one trial, with which the engine must agree."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from optbench.data import Dataset
from optbench.engine.batches import BatchStream
from optbench.models import Network, build, initialise
from optbench.streams import generator
from optbench.suite import Suite
from optbench.tasks import Examples, TaskFamily


def train_twin(
    suite: Suite,
    dataset: Dataset,
    seed: int,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    module: nn.Module | None = None,
    before: Callable[[int, int], object] = lambda task, step: None,
    batch: Callable[[BatchStream, int], Tensor] = lambda stream, step: stream.examples.inputs[stream.indices(step)],
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[list[float]]]:
    """Train one trial of the small suite; return initial weights, final weights and accuracy matrix (T+1, T).

    module: a user's model with its initial weights. before: called with task and step before each training step.
    batch: returns the stored inputs (B, ...) of a step.
    """
    experiment = suite.experiments["small"]
    protocol = experiment.protocol
    family = TaskFamily(experiment.tasks, dataset, protocol, suite.seed, torch.device("cpu"))
    sequence = family.sequence(seed)
    network: nn.Module
    if module is None:
        ours: Network = build(experiment.models["net"], family.inputs, family.classes)
        start = initialise(ours, generator(suite.seed, seed, "initial weights"))
        network = ours.to_empty(device="cpu")
        network.load_state_dict(start)
    else:
        network = module
        start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = make_optimizer(network)

    def inputs(raw: Tensor) -> Tensor:
        return (raw / 255 - dataset.mean[0]) / dataset.std[0]

    def accuracy(examples: Examples) -> float:
        network.eval()
        with torch.no_grad():
            return (network(inputs(examples.inputs)).argmax(1) == examples.targets).double().mean().item()

    matrix = [[accuracy(sequence.test(j)) for j in range(family.count)]]
    for task in range(family.count):
        if hasattr(optimizer, "begin_task"):
            optimizer.begin_task()
        train, target = sequence.train(task), protocol.early_stopping.target if protocol.early_stopping else None
        scored = sequence.validation(task) if target is None else train  # all, if fewer than 5,000
        stream = BatchStream(train, protocol.batch_size, suite.seed, seed, task, augment=protocol.augment)
        best, kept, waited = float("inf"), network.state_dict(), 0
        interval = round(protocol.evaluate_every * stream.steps_per_epoch)
        for step in range(1, round(protocol.max_epochs * stream.steps_per_epoch) + 1):
            rows = stream.indices(step - 1)
            optimizer.zero_grad()
            network.train()
            before(task, step - 1)
            nn.functional.cross_entropy(network(inputs(batch(stream, step - 1))), train.targets[rows]).backward()
            optimizer.step()
            if step % interval == 0:
                network.eval()
                with torch.no_grad():
                    loss = nn.functional.cross_entropy(network(inputs(scored.inputs)), scored.targets).item()
                if target is not None:
                    if loss <= target:
                        break
                elif loss < best:
                    best, waited = loss, 0
                    kept = {name: weight.clone() for name, weight in network.state_dict().items()}
                else:
                    waited += 1
                if target is None and protocol.early_stopping and waited >= protocol.early_stopping.patience:
                    break
        if target is None:
            network.load_state_dict(kept)
        matrix.append([accuracy(sequence.test(j)) for j in range(family.count)])
    return start, network.state_dict(), matrix
