"""Modular addition, with part of the addition table used for training (Power et al. 2022, arXiv:2201.02177).

Legend: p the modulus, N = p² pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optbench.late import torch
from optbench.streams import generator

if TYPE_CHECKING:
    from optbench.data.dataset import Dataset


def sizes(modulus: int, train_share: float) -> tuple[int, int]:
    """Return the numbers of pairs for training, including validation, and for testing; at least one of each."""
    total = modulus * modulus
    train = min(total - 1, max(1, round(train_share * total)))
    return train, total - train


def modular_addition_dataset(modulus: int, train_share: float, seed: int) -> Dataset:
    """Return all pairs (a, b) with the target (a + b) mod p, split at random; see `sizes`.

    Inputs are one-hot: float32 (N, 2p), with a 1 at index a and at index p + b, so that the first layer of an MLP is an
    embedding table for each operand. A mean of 0 and a standard deviation of 1 are declared, so that `normalisation`
    does not change the inputs.
    """
    from optbench.data.dataset import Dataset, Split

    order = torch.randperm(modulus * modulus, generator=generator(seed, None, "modular-addition"))
    a, b = order // modulus, order % modulus
    one_hot = torch.nn.functional.one_hot
    inputs = torch.cat([one_hot(a, modulus), one_hot(b, modulus)], 1).float()
    targets = (a + b) % modulus
    first, _ = sizes(modulus, train_share)
    train, test = Split(inputs[:first], targets[:first]), Split(inputs[first:], targets[first:])
    return Dataset("modular-addition", train, test, modulus, mean=(0.0,), std=(1.0,))
