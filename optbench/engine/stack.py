"""The weights of a cohort in one matrix, and the views of it that models and optimizers work on.

Legend: M members, P padded parameter count of one network, Q floats that its buffers take, padded likewise.
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
"""Every parameter starts at a multiple of 16 floats, 64 bytes.

Two reasons, both for bit-identity between a trial alone and the same trial in a cohort: BLAS kernels may order a sum
by the alignment of their operands, and a vectorised kernel may round its last few elements (the part that does not
fill a vector) differently from the rest. Aligned and padded, every member meets the same code on the same bytes.
"""


@dataclass(frozen=True)
class Slot:
    """Where one parameter or buffer lies in a member's row.

    persistent: whether a checkpoint has it. offset: in floats, whatever the type.
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
    """How one network lies in a row: P floats of parameters, then Q of buffers; the padding between them is zero.

    Buffers of any type lie there bit by bit. What only concerns parameters takes rows with or without buffers.
    """

    slots: tuple[Slot, ...]
    width: int
    """P, the padded length of the parameters."""
    buffers: tuple[Slot, ...] = ()
    whole: int = -1
    """P + Q."""

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
        """How many weights the network really has, without padding."""
        return sum(slot.numel for slot in self.slots)

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (..., P) or (..., P + Q) to the parameters (..., *shape) by name, sharing memory."""
        lead = rows.shape[:-1]
        return {s.name: rows[..., s.offset : s.offset + s.numel].view((*lead, *s.shape)) for s in self.slots}

    def parts(self, weights: Tensor) -> dict[str, Tensor]:
        """Weights without padding, one parameter after the other, to the parameters by name, sharing memory."""
        parts = torch.split(weights, [slot.numel for slot in self.slots])
        return {slot.name: part.view(slot.shape) for slot, part in zip(self.slots, parts, strict=True)}

    def weights(self, rows: Tensor) -> Tensor:
        """Rows (..., P + Q) without the buffers, (..., P), sharing memory."""
        return rows[..., : self.width]

    def buffer_views(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (..., P + Q) to the buffers (..., *shape) by name, sharing memory."""
        views = {}
        for s in self.buffers:
            size = math.prod(s.shape)
            floats = rows[..., s.offset : s.offset + -(-size * s.dtype.itemsize // 4)]
            views[s.name] = floats.view(s.dtype)[..., :size].view((*rows.shape[:-1], *s.shape))
        return views

    def tensors(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows (..., P + Q) to the parameters and buffers by name, sharing memory."""
        return self.views(rows) | self.buffer_views(rows)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Parameters and buffers of one network to its row (P + Q,), on the CPU."""
        row = torch.zeros(max(self.whole, self.width))
        for name, view in self.tensors(row).items():
            view.copy_(tensors[name])
        return row

    @torch.no_grad()
    def copy_to(self, network: nn.Module, row: Tensor) -> None:
        """Give a network the parameters and buffers of a row (P + Q,)."""
        own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for name, view in self.tensors(row).items():
            own[name].copy_(view)

    def unpack(self, row: Tensor) -> dict[str, Tensor]:
        """A row (P + Q,) to what a checkpoint has of the network, as tensors of their own on the CPU."""
        gone = {slot.name for slot in self.buffers if not slot.persistent}
        return {name: view.detach().cpu().clone() for name, view in self.tensors(row).items() if name not in gone}


def _aligned(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT


def digest(weights: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of the SHA-256 over names, shapes and bytes: equal weights, equal digest."""
    state = hashlib.sha256()
    for name, weight in weights.items():
        state.update(f"{name}{tuple(weight.shape)}".encode())
        state.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """True if two float32 tensors have the same bits, any NaN counting as any other.

    Which NaN an operation returns depends on the order of its operands; a trial with one has diverged whichever it is.
    """
    same = a.view(torch.int32) == b.view(torch.int32)
    return bool(same.all()) or bool((same | (a.isnan() & b.isnan())).all())
