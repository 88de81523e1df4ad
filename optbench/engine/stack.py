"""The weights of a cohort in one matrix, with views for models and optimizers.

Legend: M members, P padded parameter count of one network, Q padded size of its buffers in floats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

EMPTY: Mapping[str, Tensor] = MappingProxyType({})
ALIGNMENT = 16
"""Every parameter starts at a multiple of 16 floats (64 bytes).

This ensures that a trial gives the same bits alone and in a cohort. In BLAS kernels, the order of a sum may depend on
the alignment of its operands. A vectorised kernel may use different rounding for the last few elements, which do not
fill a vector. With alignment and padding, every member is processed by the same code on the same bytes.
"""


@dataclass(frozen=True)
class Slot:
    """The location of one parameter or buffer in a member's row.

    offset: the position of the tensor's start in the row, in floats for any dtype.
    persistent: True if the tensor is saved in checkpoints.
    """

    name: str
    shape: torch.Size
    offset: int
    dtype: torch.dtype = torch.float32
    persistent: bool = True

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The layout of a network in a row: P floats for parameters, then Q floats for buffers, both with zero padding.

    Buffers of any dtype are stored bitwise. Methods for parameters accept rows with or without buffers.
    """

    slots: tuple[Slot, ...]
    width: int
    """P, the padded length of the parameters."""
    buffers: tuple[Slot, ...] = ()
    whole: int = -1
    """P + Q, the length of a row."""

    @staticmethod
    def of(
        shapes: Mapping[str, torch.Size], buffers: Mapping[str, Tensor] = EMPTY, persistent: Iterable[str] = ()
    ) -> Layout:
        slots, kept, offset = [], [], 0
        for name, shape in shapes.items():
            slots.append(Slot(name, shape, offset))
            offset += _aligned(math.prod(shape))
        width, persistent = offset, frozenset(persistent)
        for name, buffer in buffers.items():
            kept.append(Slot(name, buffer.shape, offset, buffer.dtype, name in persistent))
            offset += _aligned(-(-buffer.numel() * buffer.itemsize // 4))
        return Layout(tuple(slots), width, tuple(kept), offset)

    @property
    def parameters(self) -> int:
        """The number of parameters without padding."""
        return sum(slot.numel for slot in self.slots)

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the parameters (..., *shape) by name as views of rows (..., P) or (..., P + Q)."""
        lead = rows.shape[:-1]
        return {s.name: rows[..., s.offset : s.offset + s.numel].view((*lead, *s.shape)) for s in self.slots}

    def parts(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name as views of concatenated weights without padding."""
        parts = torch.split(weights, [slot.numel for slot in self.slots])
        return {slot.name: part.view(slot.shape) for slot, part in zip(self.slots, parts, strict=True)}

    def weights(self, rows: Tensor) -> Tensor:
        """Return rows (..., P + Q) without their buffers, as a view (..., P)."""
        return rows[..., : self.width]

    def buffer_views(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the buffers (..., *shape) by name as views of rows (..., P + Q)."""
        views = {}
        for s in self.buffers:
            size = math.prod(s.shape)
            floats = rows[..., s.offset : s.offset + -(-size * s.dtype.itemsize // 4)]
            views[s.name] = floats.view(s.dtype)[..., :size].view((*rows.shape[:-1], *s.shape))
        return views

    def tensors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return parameters and buffers by name as views of rows (..., P + Q)."""
        return self.views(rows) | self.buffer_views(rows)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Pack parameters and buffers of one network into a row (P + Q,), on the CPU."""
        row = torch.zeros(max(self.whole, self.width))
        for name, view in self.tensors(row).items():
            view.copy_(tensors[name])
        return row

    @torch.no_grad()
    def copy_to(self, network: nn.Module, row: Tensor) -> None:
        """Copy a row (P + Q,) to the parameters and buffers of a network."""
        own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for name, view in self.tensors(row).items():
            own[name].copy_(view)

    def unpack(self, row: Tensor) -> dict[str, Tensor]:
        """Convert a row (P + Q,) to the tensors of a checkpoint, copied to the CPU."""
        gone = {slot.name for slot in self.buffers if not slot.persistent}
        return {name: view.detach().cpu().clone() for name, view in self.tensors(row).items() if name not in gone}


def _aligned(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 hash of the weights' names, shapes and bytes."""
    state = hashlib.sha256()
    for name, weight in weights.items():
        state.update(f"{name}{tuple(weight.shape)}".encode())
        state.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two float32 tensors have the same bits, treating all NaN as equal.

    The bits of a NaN depend on the order of an operation's operands, and any NaN means divergence.
    """
    same = a.view(torch.int32) == b.view(torch.int32)
    return bool(same.all()) or bool((same | (a.isnan() & b.isnan())).all())
