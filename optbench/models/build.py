"""The construction of a module from a model's settings, and its initial weights, drawn from a generator."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from optbench.late import nn, torch
from optbench.models.network import Network

if TYPE_CHECKING:
    from optbench.data import InputSpec
    from optbench.suite.schema import ModelSettings


def build(settings: ModelSettings, inputs: InputSpec, outputs: int, seed: int = 0) -> nn.Module:
    """Build the module described by `settings`.

    A built-in module is on the meta device, so its weights have no values; `initialise` draws them. A user's module is
    on the CPU and draws its own initial weights from the global generators, which are seeded with `seed`.

    Raises:
        ValueError: the settings do not fit the inputs.
        Exception: any exception raised by a user's code.
    """
    with contextlib.nullcontext() if settings.is_users else torch.device("meta"):
        network: nn.Module = settings.make(inputs, outputs, seed=seed)
    return network


def initialise(model: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return initial parameters and buffers by name; weights are drawn from `generator` in module order.

    Linear and convolutional layers are initialised according to the model's settings
    (`optbench.models.network.Initialisation`). The default is PyTorch's: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights
    and biases, as in `nn.Linear.reset_parameters`. Normalisation layers start with weights of 1, biases of 0, running
    means of 0 and running variances of 1. A network can draw weights itself by overriding `Network.draw`.

    Weights are drawn on the CPU for every device, so that all devices start with the same bits.
    """
    assert isinstance(model, Network), "a user's module draws its own weights"
    found: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(prefix=prefix, recurse=False))
        for name, buffer in module.named_buffers(prefix=prefix, recurse=False):
            found[name] = torch.full(buffer.shape, int(name.endswith("running_var")), dtype=buffer.dtype)
        drawn = {name: torch.zeros(parameter.shape) for name, parameter in own.items()}
        found |= {name: weights for name, weights in drawn.items() if model.draw(name, weights, generator)}
        left = {name: parameter for name, parameter in own.items() if name not in found}
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, parameter in left.items():
                fan_in = math.prod(module.weight.shape[1:])
                found[name] = _DRAWS[model.initialisation](parameter.shape, fan_in, generator)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
            for name, parameter in left.items():
                found[name] = torch.ones(parameter.shape) if name.endswith("weight") else torch.zeros(parameter.shape)
        elif left:
            raise AssertionError(f"no initialisation is defined for {type(module).__name__}")
    # in the order of `named_parameters`, which the stack uses
    return {name: found[name] for name, _ in (*model.named_parameters(), *model.named_buffers())}


def _uniform(shape: torch.Size, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    bound = 1.0 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _truncated_normal(shape: torch.Size, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    if len(shape) < 2:
        return torch.zeros(shape)
    # a standard normal truncated to [-2, 2] has a standard deviation of .8796
    std = 1.0 / math.sqrt(fan_in) / TRUNCATED_STD
    return nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -2 * std, 2 * std, generator=generator)


TRUNCATED_STD = 0.87962566103423978
_DRAWS = {"uniform": _uniform, "truncated-normal": _truncated_normal}
