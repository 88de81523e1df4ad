"""Models as a user would write them, for `throughput.py --model`: images (1, 28, 28) to 10 classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optbench import InputSpec


class Transformer(nn.Module):
    """A transformer with 4 heads over the 28 rows of an image; `bias=False` also omits the layer norms."""

    def __init__(self, inputs: InputSpec, outputs: int, width: int = 64, layers: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs.shape[-1], width, bias=bias)
        self.positions = nn.Parameter(0.02 * torch.randn(inputs.shape[-2], width))
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width, bias=bias) for _ in range(layers)])
        self.mix = nn.ModuleList([nn.Linear(width, width, bias=bias) for _ in range(layers)])
        self.up = nn.ModuleList([nn.Linear(width, 2 * width, bias=bias) for _ in range(layers)])
        self.down = nn.ModuleList([nn.Linear(2 * width, width, bias=bias) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) if bias else nn.Identity() for _ in range(2 * layers)])
        self.head = nn.Linear(width, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2)) + self.positions
        norms = iter(self.norms)
        for qkv, mix, up, down in zip(self.qkv, self.mix, self.up, self.down, strict=True):
            q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in qkv(next(norms)(x)).chunk(3, -1))
            attended = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
            x = x + mix(attended.transpose(1, 2).flatten(2))
            x = x + down(up(next(norms)(x)).relu())
        logits: Tensor = self.head(x.mean(1))
        return logits


class Unbiased(nn.Module):
    """A residual MLP without biases."""

    def __init__(self, inputs: InputSpec, outputs: int, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(inputs.shape[-2] * inputs.shape[-1], width, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        self.head = nn.Linear(width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + block(x).relu()
        logits: Tensor = self.head(x)
        return logits


class Residual(nn.Module):
    """Two residual blocks of convolutions, with or without batch norm."""

    def __init__(self, inputs: InputSpec, outputs: int, width: int = 16, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs.shape[0], width, 3, stride=2, padding=1)
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) if norm else nn.Identity() for _ in range(4)])
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        first, second, third, fourth = zip(self.norms, self.convolutions, strict=True)
        for (norm, one), (other_norm, other) in ((first, second), (third, fourth)):
            x = (x + other_norm(other(norm(one(x)).relu()))).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
