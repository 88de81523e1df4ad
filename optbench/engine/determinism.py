"""Collect the operations that PyTorch reports as non-deterministic, for the notes on results."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch

ALERT = r"(?is).*determinis"
"""Pattern that matches every such warning."""
_NAME = r"(.+?) (?:does not have a|defaults to a non-)"


def ask_for_determinism() -> None:
    """Use deterministic implementations where they exist, and warn otherwise.

    An error instead of a warning would make a user's optimizer fail on one device because of operations that work on
    another.
    """
    # Not `use_deterministic_algorithms`, which imports the whole compiler, in 1.4 s, only to notify it.
    torch.set_deterministic_debug_mode("warn")
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    torch.backends.cudnn.benchmark = False
    # Otherwise every new tensor is filled first, which doubles the number of kernels per step on a GPU.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch hides it


@contextlib.contextmanager
def alerts() -> Iterator[set[str]]:
    """Collect the names of operations used in the block that have no deterministic implementation."""
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
