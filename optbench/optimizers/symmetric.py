"""Sums of products X Xᵀ, which dominate Shampoo's step on a CPU, computed at about half the cost of general products.

A symmetric matrix is stored as its *lower panels*: groups of `PANEL` rows, each group up to the column of its last
diagonal element. Elements further to the right are not written. A matrix with a single panel is stored completely.
PyTorch has no symmetric rank-k update, but products of panels are as fast as one (benchmarks/RESULTS.md). Products of
panels work in every dtype and with PyTorch's number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL = 128


def panels(n: int) -> Iterator[tuple[int, int]]:
    """Return the first row and the end (exclusive) of each panel of an n × n matrix, in order."""
    return ((first, min(n, first + PANEL)) for first in range(0, n, PANEL))


def add_gram(lower: Tensor, rows: Tensor, decay: float, weight: float) -> None:
    """Update S ← decay S + weight X Xᵀ in place.

    lower: S, (n, n), as lower panels. rows: X, (n, k), with the dtype of S.
    """
    for first, end in panels(len(rows)):
        lower[first:end, :end].addmm_(rows[first:end], rows[:end].mT, beta=decay, alpha=weight)


def whole(lower: Tensor) -> Tensor:
    """Return the complete matrix, (n, n), given its lower panels."""
    if len(lower) <= PANEL:
        return lower
    matrix = lower.clone()
    for first, end in panels(len(lower)):
        matrix[:first, first:end] = lower[first:end, :first].mT
    return matrix


def times(lower: Tensor, x: Tensor) -> Tensor:
    """Return the product S x, (n,). lower: S, (n, n), as lower panels. x: (n,)."""
    if len(x) <= PANEL:
        return lower @ x
    product = torch.zeros_like(x)
    for first, end in panels(len(x)):
        product[first:end] += lower[first:end, :end] @ x[:end]
        product[:first] += lower[first:end, :first].mT @ x[first:end]
    return product
