"""PyTorch's deterministic mode, and the operations that PyTorch reports as non-deterministic, for notes on results."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch

ALERT = r"(?is).*determinis"
"""Pattern that matches all of PyTorch's warnings about non-deterministic operations."""
_NAME = r"(.+?) (?:does not have a|defaults to a non-)"


def ask_for_determinism() -> None:
    """Make PyTorch use deterministic implementations where they exist, and warn where they do not.

    With errors instead of warnings, a user's optimizer would fail on some devices and work on others.
    """
    # `use_deterministic_algorithms` would also import the entire compiler, which takes 1.4 s, only to notify it.
    torch.set_deterministic_debug_mode("warn")
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    torch.backends.cudnn.benchmark = False
    # Otherwise every new tensor is filled first, which doubles the number of kernels per step on a GPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch hides it


@contextlib.contextmanager
def alerts() -> Iterator[set[str]]:
    """Collect the names of operations in the block that have no deterministic implementation."""
    found: set[str] = set()
    with warnings.catch_warnings():  # which also restores `showwarning`
        show = warnings.showwarning

        def note(message: Warning | str, *where: Any, **more: Any) -> None:
            if re.match(ALERT, str(message)):
                name = re.match(_NAME, str(message))
                found.add(name[1] if name else str(message).partition(". ")[0])
            else:
                show(message, *where, **more)

        warnings.showwarning = note
        warnings.filterwarnings("always", message=ALERT, category=UserWarning)
        yield found
