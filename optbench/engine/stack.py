"""The weights of a cohort in one matrix, and the views of it that models and optimizers work on.

Legend: M members, P padded parameter count of one network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 16
"""Every parameter starts at a multiple of 16 floats, 64 bytes.

Two reasons, both for bit-identity between a trial alone and the same trial in a cohort: BLAS kernels may order a sum
by the alignment of their operands, and a vectorised kernel may round its last few elements (the part that does not
fill a vector) differently from the rest. Aligned and padded, every member meets the same code on the same bytes.
"""


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in a member's row."""

    name: str
    shape: torch.Size
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """How the parameters of one network lie in a row of P floats; the padding between them is zero."""

    slots: tuple[Slot, ...]
    width: int
    """P, the padded length of a row."""

    @staticmethod
    def of(shapes: Mapping[str, torch.Size]) -> Layout:
        slots, offset = [], 0
        for name, shape in shapes.items():
            slots.append(Slot(name, shape, offset))
            offset += -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT
        return Layout(tuple(slots), offset)

    @property
    def parameters(self) -> int:
        """How many weights the network really has, without padding."""
        return sum(slot.numel for slot in self.slots)

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (..., P) to the parameters (..., *shape) by name, sharing memory."""
        lead = rows.shape[:-1]
        return {s.name: rows[..., s.offset : s.offset + s.numel].view(*lead, *s.shape) for s in self.slots}

    def pack(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Parameters of one network to its row (P,), on the CPU."""
        row = torch.zeros(self.width)
        for name, view in self.views(row).items():
            view.copy_(weights[name])
        return row

    def unpack(self, row: Tensor) -> dict[str, Tensor]:
        """A row (P,) to the parameters of one network, as tensors of their own on the CPU."""
        return {name: view.detach().cpu().clone() for name, view in self.views(row).items()}


def digest(weights: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of the SHA-256 over names, shapes and bytes: equal weights, equal digest."""
    state = hashlib.sha256()
    for name, weight in weights.items():
        state.update(f"{name}{tuple(weight.shape)}".encode())
        state.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]
