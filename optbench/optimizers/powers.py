"""Fast powers of magnitudes: `torch.pow` with a fractional exponent takes three times as long on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

KERNELS = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Exponents for which `torch.pow` has special kernels."""


def power(size: Tensor, exponent: float | Tensor) -> Tensor:
    """Return size ** exponent elementwise for sizes ≥ 0 and exponents ≥ 0, accurate to a few roundings; 0⁰ is 1.

    exponent: a number, or a tensor that broadcasts against `size`.
    """
    if isinstance(exponent, Tensor):
        # 0 · log 0 is NaN, and 1 to any power is 1. Checking the exponents instead would synchronise a GPU.
        size = torch.where(exponent == 0, torch.ones_like(size), size)
    elif exponent in KERNELS:
        return size.pow(exponent)
    return size.log2().mul_(exponent).exp2_()  # log 0 is -inf, and 2^-inf is 0
