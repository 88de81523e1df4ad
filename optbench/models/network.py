"""Base class of built-in networks: features with a linear head."""

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
"""`uniform`: PyTorch's default, weights and biases in ±1/√fan_in. `truncated-normal`: weights with a standard deviation
of 1/√fan_in, truncated at two standard deviations of the untruncated distribution, and biases 0 (as in the reference
implementation of Powerpropagation)."""


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits (..., C) and targets (...), reduced over all leading axes."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def materialised(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a network on `device`; weights copied from the meta device are uninitialised."""
    copied = copy.deepcopy(network)
    if not next(copied.parameters()).is_meta:
        return copied.to(device)
    # like `to_empty`, which for meta tensors imports sympy and so takes half a second
    copied._apply(lambda meta: torch.empty(meta.shape, dtype=meta.dtype, device=device))  # type: ignore[no-untyped-call]
    return copied


class Network(Module):
    """A classifier whose last layer is linear: `logits = head(features(x))`.

    The representation for all metrics (rank, similarity, dormant units) is `features(x)`, the input of the last
    linear layer and the last of the `hidden` layers. In eval mode outputs are determined by weights, buffers and
    inputs; buffers, if any, are the running statistics of batch norm.

    A subclass becomes an `nn.Module` on first construction, so that settings can be read without importing torch.
    """

    reads_tokens: ClassVar[bool] = False
    """True if its inputs are sequences of tokens (B, T), with logits (B, T, V), instead of images or vectors."""
    deep: ClassVar[bool] = False
    """True if its size is not obvious from the settings, or members may be trained one by one; a dry run reports
    both."""

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
        """The reason for training members one by one, `dropout` or `batch norm`; None if there is none."""
        return None

    def draw(self, name: str, weights: Tensor, generator: torch.Generator) -> bool:
        """Fill a parameter's zero `weights` with its initial weights.

        Return False to use the initialisation given by the settings and the layer (`optbench.models.initialise`).
        """
        return False

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Return for each hidden layer the input of its activation and its output, for inputs (B, *shape)."""
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
