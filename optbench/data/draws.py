"""The random numbers of datasets: of a purpose and the dataset's own seed, whatever else draws."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from optbench.late import torch

if TYPE_CHECKING:
    from torch import Generator


def draws(purpose: str, seed: int) -> Generator:
    """Return a generator on the CPU; different purposes or seeds give independent numbers."""
    number = int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)
