"""Closures passed to `step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """Evaluate a closure that recomputes the loss and gradients; return the loss, or None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
