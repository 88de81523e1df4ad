"""Detection of draws from the global random generators, which optbench never uses but user code may."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GlobalDraws:
    """The state of the global generators of PyTorch, NumPy and Python."""

    torch: Tensor
    numpy: Any
    python: Any

    @staticmethod
    def now() -> GlobalDraws:
        # Code that draws from NumPy without an explicit generator uses the legacy interface.
        return GlobalDraws(torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002

    def moved(self, later: GlobalDraws) -> list[str]:
        """Return the libraries whose generators were used between this state and `later`."""
        same = {
            "torch": torch.equal(self.torch, later.torch),
            "numpy.random": all(np.array_equal(a, b) for a, b in zip(self.numpy, later.numpy, strict=True)),
            "Python's random": self.python == later.python,
        }
        return [library for library, alike in same.items() if not alike]
