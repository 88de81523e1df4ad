"""Devices and dtypes for measuring in float64, on the CPU if the device (such as an Apple GPU) does not support it.

This module imports torch on first use.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Return whether the device supports float64."""
    return device.type != "mps"


def exact_device(device: torch.device) -> torch.device:
    """Return the device itself, or the CPU if the device does not support float64."""
    import torch

    return device if has_float64(device) else torch.device("cpu")


def widest(device: torch.device) -> torch.dtype:
    """Return the widest floating-point dtype that the device supports."""
    import torch

    return torch.float64 if has_float64(device) else torch.float32


def exact(values: Tensor) -> Tensor:
    """Return the values in float64, detached, on their device or, if it does not support float64, on the CPU."""
    return values.detach().to(exact_device(values.device)).double()


CASTING = ("cpu", "cuda", "mps", "xpu")
"""Device types that autocast supports; `meta`, which computes shapes only, is not among them."""


def without_casts(device: torch.device) -> AbstractContextManager[object]:
    """Return a context manager that disables autocast if it is enabled for the device."""
    import torch

    if device.type not in CASTING or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
