"""Base class of the built-in networks, which compute features and pass them to a linear head."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from optbench.late import nn, torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
else:
    Module = object

Activation = Literal["relu", "tanh", "gelu"]
Initialisation = Literal["uniform", "truncated-normal"]
"""`uniform`: PyTorch's default, with weights and biases uniform in ±1/√fan_in. `truncated-normal`: biases of 0, and
weights from a normal distribution truncated at two standard deviations, scaled so that the weights have a standard
deviation of 1/√fan_in (as in the reference implementation of Powerpropagation)."""


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits (..., C) and targets (...), with leading axes flattened before `reduction`."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def materialised(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a network on `device`; if the network is on the meta device, the copy is uninitialised."""
    copied = copy.deepcopy(network)
    if not next(copied.parameters()).is_meta:
        return copied.to(device)
    # like `to_empty`, which for meta tensors imports sympy and so takes half a second
    copied._apply(lambda meta: torch.empty(meta.shape, dtype=meta.dtype, device=device))  # type: ignore[no-untyped-call]
    return copied


class Network(Module):
    """A classifier whose last layer is linear: `logits = head(features(x))`.

    Metrics of representations (rank, similarity, dormant units) use `features(x)`, the output of the last hidden layer
    and the input of the linear head. In eval mode, outputs depend only on weights, buffers and inputs. The only buffers
    are the running statistics of batch norm.

    A subclass is not an `nn.Module` until it is first constructed, so that its settings can be read without importing
    torch.
    """

    reads_tokens: ClassVar[bool] = False
    """True if the inputs are sequences of tokens (B, T) rather than images or vectors; logits are then (B, T, V)."""
    deep: ClassVar[bool] = False
    """True if the settings do not make the network's size obvious, or may require members to be trained one by one. A
    dry run then reports the number of parameters and how members are trained."""

    head: nn.Linear
    initialisation: Initialisation

    def __new__(cls, *arguments: Any, **settings: Any) -> Network:
        return object.__new__(_module(cls))  # type: ignore[arg-type]

    @property
    def depth(self) -> int:
        """The number of hidden layers."""
        raise NotImplementedError  # abstract, like `hidden`

    @property
    def alone(self) -> str | None:
        """Why members must be trained one by one: `dropout` or `batch norm`; None if they can be trained together."""
        return None

    def draw(self, name: str, weights: Tensor, generator: torch.Generator) -> bool:
        """Overwrite `weights`, which are zeros, with the initial values of the parameter `name`, and return True.

        Return False to let `optbench.models.initialise` draw the values according to the model's settings and layers.
        """
        return False

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pre-activation and the output of each hidden layer, for inputs (B, *shape)."""
        raise NotImplementedError  # abstract: every network defines its own

    def features(self, x: Tensor) -> Tensor:
        """Map inputs (B, *shape) to features (B, d), or (B, T, d) for tokens."""
        features = x if self.reads_tokens else x.flatten(1)
        for _, features in self.hidden(x):  # noqa: B007  # the last one is returned
            pass
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (B, *shape) to logits (B, classes), or (B, T, V) for tokens."""
        logits: Tensor = self.head(self.features(x))
        return logits


@functools.cache
def _module(cls: type[Network]) -> type[Network]:
    return cls if issubclass(cls, nn.Module) else type(cls.__name__, (cls, nn.Module), {})


def activate(name: Activation, x: Tensor) -> Tensor:
    """Apply an activation to a tensor of any shape."""
    return {"relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}[name](x)
