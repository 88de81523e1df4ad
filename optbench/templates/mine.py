"""An optimizer, a model and a metric of your own: change or replace them.

    optbench check ./mine.py:Mine      # check it against the contract, line by line
    optbench run suite.yaml            # train and compare the optimizers of suite.yaml

A run keeps copies of this file and of the neighbouring modules that the file imports.
"""

import math

import torch
from torch import nn

import optbench


class Mine(torch.optim.Optimizer):
    """Sign momentum: each parameter moves by lr, against the sign of its average gradient.

    Any torch.optim.Optimizer works, or a function (params, **settings) that returns one. The arguments after
    `params` are the hyper-parameters; the settings in suite.yaml are checked against them.
    """

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                # State must be in self.state, so that an interrupted trial can be resumed.
                state = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                parameter.add_(average.sign(), alpha=-group["lr"])


class Small(nn.Module):
    """One hidden layer with batch normalisation.

    A model takes `inputs` (shape, dtype) and the number of `outputs`; any further arguments are its settings. The
    inputs of its last linear layer are its features, on which many metrics are measured.
    """

    def __init__(self, inputs: optbench.InputSpec, outputs: int, width: int = 32):
        super().__init__()
        self.hidden = nn.Linear(math.prod(inputs.shape), width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):  # (B, *inputs.shape) to (B, outputs)
        return self.head(torch.relu(self.norm(self.hidden(x.flatten(1)))))


@optbench.metric(of="features", direction="lower")
def quiet_units(features):
    """Return the fraction of features that are 0 on every test example."""
    return (features == 0).all(dim=0).double().mean().item()  # features: (N, d), of one trial
