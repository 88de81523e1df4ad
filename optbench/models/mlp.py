"""Multi-layer perceptron of any depth and width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from optbench.kinds import Whole
from optbench.late import nn
from optbench.models.network import Activation, Initialisation, Network, activate

if TYPE_CHECKING:
    from torch import Tensor

    from optbench.data import InputSpec

Width = Annotated[Whole, Field(ge=1, le=100_000)]


class Mlp(Network):
    """Fully connected network; `hidden` lists the widths of its hidden layers.

    Each hidden layer has an optional layer normalisation before its activation. Inputs are flattened.
    """

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        *,
        hidden: tuple[Width, ...] = (100,),
        activation: Activation = "relu",
        normalisation: Literal["none", "layer"] = "none",
        initialisation: Initialisation = "uniform",
    ) -> None:
        super().__init__()
        widths = [math.prod(inputs.shape), *hidden]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        self.norms = nn.ModuleList([nn.LayerNorm(w) if normalisation == "layer" else nn.Identity() for w in hidden])
        self.head = nn.Linear(widths[-1], outputs)
        self.activation, self.normalisation, self.initialisation = activation, normalisation, initialisation

    @property
    def depth(self) -> int:
        return len(self.layers)

    def hidden(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            before = norm(layer(x))
            x = activate(self.activation, before)
            yield before, x
