"""Where numbers are exact: everything is measured in float64, which Apple's GPUs do not have. Imports torch late."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Whether tensors on the device may be of float64."""
    return device.type != "mps"


def exact_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64."""
    import torch

    return device if has_float64(device) else torch.device("cpu")


def widest(device: torch.device) -> torch.dtype:
    """The dtype with the most digits there."""
    import torch

    return torch.float64 if has_float64(device) else torch.float32


def exact(values: Tensor) -> Tensor:
    """Values in float64, on `exact_device` of where they are, without their history."""
    return values.detach().to(exact_device(values.device)).double()


CASTING = ("cpu", "cuda", "mps", "xpu")
"""Devices that autocast knows: not `meta`, on which shapes are worked out without numbers."""


def without_casts(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast does nothing, where it is on."""
    import torch

    if device.type not in CASTING or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
