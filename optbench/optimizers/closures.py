"""The closure that `step` may be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss of a closure that computes loss and gradients anew, evaluated once; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
