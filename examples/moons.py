"""A user-defined dataset, task sequence, model and metric, used by the suite moons.yaml.

optbench check ./moons.py:Net       # check it against the contract, line by line
optbench run moons.yaml
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

import optbench


def moons(examples: Annotated[int, Field(ge=100)] = 1200, noise: float = 0.15) -> optbench.Dataset:
    """Two interleaved half circles in the plane; the last fifth of the examples are the test data."""
    generator = torch.Generator().manual_seed(0)  # the same data for every trial
    targets = torch.arange(examples) % 2
    angle = math.pi * torch.rand(examples, generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    points = torch.where(targets[:, None] == 0, upper, lower)
    points += noise * torch.randn(examples, 2, generator=generator)
    cut = examples - examples // 5
    train, test = optbench.Split(points[:cut], targets[:cut]), optbench.Split(points[cut:], targets[cut:])
    return optbench.Dataset("moons", train, test, classes=2)


class Turning:
    """The same points, rotated by a further `degrees` in each task."""

    def __init__(self, data: optbench.Parts, seed: int, count: int = 3, degrees: float = 45.0):
        self.data, self.degrees = data, degrees
        self.names = [f"{degrees * task:g}°" for task in range(count)]

    def examples(self, trial_seed: int, task: int, part: str):  # task: from 0; part: train, validation or test
        plain = self.data[part]
        a = math.radians(self.degrees * task)
        turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        return plain.inputs @ turn, plain.targets


class Net(nn.Module):
    """A network with one hidden layer. The inputs of the last linear layer are the features that metrics measure."""

    def __init__(self, inputs: optbench.InputSpec, outputs: int, width: Annotated[int, Field(ge=1)] = 16):
        super().__init__()
        self.hidden = nn.Linear(math.prod(inputs.shape), width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):  # (B, 2) to (B, outputs)
        return self.head(torch.relu(self.hidden(x)))


@optbench.metric(of="features", direction="higher", margin=0.1)
def separation(features, targets):
    """Distance between the class means, in within-class standard deviations."""
    groups = [features[targets == c] for c in targets.unique()]
    spread = torch.cat([group - group.mean(0) for group in groups]).std()
    return torch.pdist(torch.stack([group.mean(0) for group in groups])).mean() / spread
