"""A user's file: models that work, a dataset of sequences, and models with faults."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from optbench import Dataset, InputSpec, Split


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norms[0](self.first(x)).relu()
        return (x + self.norms[1](self.second(hidden))).relu()


class ResNet(nn.Module):
    """Residual blocks with batch norm, dropout and a custom initialisation."""

    def __init__(self, inputs: InputSpec, outputs: int, width: int = 4, depth: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs.shape[0], width, 3, stride=4)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, outputs)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.blocks(self.stem(x).relu()).mean((2, 3))))


class VisionTransformer(nn.Module):
    """Two layers of attention over patches, with a class token, learnt positions and a constant mask."""

    def __init__(self, inputs: InputSpec, outputs: int, width: int = 8, patch: int = 14, layers: int = 2) -> None:
        super().__init__()
        channels, height, _ = inputs.shape
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (height // patch) ** 2 + 1, width) * 0.02)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(layers)])
        self.mlps = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.head = nn.Linear(width, outputs)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT * self.scale
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for norm, qkv, mlp in zip(self.norms, self.qkv, self.mlps, strict=True):
            q, k, v = qkv(norm(x)).chunk(3, -1)
            x = x + nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + mlp(x).relu()
        return self.head(x[:, 0])


class NextToken(nn.Module):
    """An embedding and a linear layer, from (B, T) to (B, T, V)."""

    def __init__(self, inputs: InputSpec, outputs: int, width: int = 6) -> None:
        super().__init__()
        assert inputs.vocabulary is not None
        self.embed = nn.Embedding(inputs.vocabulary, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x))


def cycles(vocabulary: int = 5, length: int = 7, train: int = 160, test: int = 60) -> Dataset:
    """Return sequences that count up from a random start; every target is the next token."""

    def split(size: int) -> Split:
        start = torch.arange(size) % vocabulary
        tokens = (start[:, None] + torch.arange(length + 1)) % vocabulary
        return Split(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    return Dataset("cycles", split(train), split(test), vocabulary)


class Flat(nn.Module):
    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs.shape[0] * 28 * 28, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class InPlace(Flat):
    """A model that modifies its inputs in place, and assigns its buffer instead of modifying it."""

    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
        return self.fc(x.flatten(1).mul_(0.5).sub_(self.mean))


class Narrow(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :7]


class Raising(Flat):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no attention to pay")


class NotFinite(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0


class NoLinear(nn.Module):
    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs.shape[0], outputs, 28)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


class OwnFeatures(NoLinear):
    def features(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Frozen(Flat):
    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.fc.bias.requires_grad_(False)


class RaisesLater(Flat):
    """A model that raises in training from the sixth forward pass on, if a weight is above one half."""

    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
            if self.passes > 5 and float(self.fc.weight.detach().abs().max()) > 0.5:
                raise ArithmeticError("weights above one half")
        return super().forward(x)


class Counting(Flat):
    """A model that counts its forward passes, also in eval mode, and depends on their number."""

    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x) * (1 + 0.1 * self.passes.sin())


class Remembering(Flat):
    """A model that counts forward passes like `Counting`, in an attribute that no check inspects."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x) * (1 + 0.1 * self.passes)


class Batched(Flat):
    """A model that centres its inputs on the mean of the batch, also in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def function(inputs: InputSpec, outputs: int) -> object:
    return [inputs, outputs]


class Reassigned(nn.Module):
    def __init__(self, inputs: InputSpec, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(math.prod(inputs.shape), outputs)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("again", self.calls)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.again = self.again + 1
        return self.out(x.flatten(1))
