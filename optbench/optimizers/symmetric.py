"""Sums of products X Xᵀ at about half the cost of general ones: on a CPU they dominate Shampoo's step.

A symmetric matrix is kept as its *lower panels*: rows in panels of `PANEL`, each up to its last diagonal element. What
is right of them is not written. A matrix of one panel is whole. PyTorch has no symmetric rank-k update; products of
panels are as fast as one (benchmarks/RESULTS.md), in every dtype and under PyTorch's own number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL = 128


def panels(n: int) -> Iterator[tuple[int, int]]:
    """First row and end of each panel of an n × n matrix."""
    return ((first, min(n, first + PANEL)) for first in range(0, n, PANEL))


def add_gram(lower: Tensor, rows: Tensor, decay: float, weight: float) -> None:
    """S ← decay S + weight X Xᵀ in place; S (n, n) as lower panels, X (n, k) of the same dtype."""
    for first, end in panels(len(rows)):
        lower[first:end, :end].addmm_(rows[first:end], rows[:end].mT, beta=decay, alpha=weight)


def whole(lower: Tensor) -> Tensor:
    """The matrix (n, n) whose lower panels these are."""
    if len(lower) <= PANEL:
        return lower
    matrix = lower.clone()
    for first, end in panels(len(lower)):
        matrix[:first, first:end] = lower[first:end, :first].mT
    return matrix


def times(lower: Tensor, x: Tensor) -> Tensor:
    """S x for S (n, n) as lower panels and x (n,)."""
    if len(x) <= PANEL:
        return lower @ x
    product = torch.zeros_like(x)
    for first, end in panels(len(x)):
        product[first:end] += lower[first:end, :end] @ x[:end]
        product[:first] += lower[first:end, :first].mT @ x[first:end]
    return product
