"""Forward passes in training in the precision that `protocol.precision` asks for.

By PyTorch's autocast: matrix products and convolutions take bfloat16 copies of float32 weights, whose gradients come
back in float32. The loss is taken in float32 on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from optbench.precision import without_casts
from optbench.suite.protocol import Precision


def logits_in(precision: Precision, device: torch.device, forward: Callable[[], Tensor]) -> Tensor:
    """Return what a forward pass returns; under autocast in float32, whatever it returns."""
    if precision == "float32":
        return forward()
    with torch.autocast(device.type, torch.bfloat16):
        return forward().float()


def in_full(tensor: Tensor) -> tuple[Tensor, AbstractContextManager[object]]:
    """Return a tensor in at least float32, and a context without casts: for what is worked out in a forward pass."""
    full = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return full, without_casts(tensor.device)
