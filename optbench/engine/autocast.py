"""Training forward passes in the precision set by `protocol.precision`.

With `bfloat16`, PyTorch's autocast computes matrix products and convolutions from bfloat16 copies of float32 weights;
gradients are in float32. The loss is computed in float32 on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from optbench.precision import without_casts
from optbench.suite.protocol import Precision


def logits_in(precision: Precision, device: torch.device, forward: Callable[[], Tensor]) -> Tensor:
    """Run a forward pass in the given precision and return its logits in float32."""
    if precision == "float32":
        return forward()
    with torch.autocast(device.type, torch.bfloat16):
        return forward().float()


def in_full(tensor: Tensor) -> tuple[Tensor, AbstractContextManager[object]]:
    """Return `tensor` in float32 or wider, and a context manager that disables autocast in a forward pass."""
    full = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return full, without_casts(tensor.device)
