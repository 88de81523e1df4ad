"""Separately preconditioned blocks of matrices (Anil et al. 2020, arXiv:2002.09018).

Shapes: M members; m rows and n columns of a parameter; B blocks of one shape, each h × w.

Blocks of one shape are treated as additional members, so code for M members processes M·B. In an optimizer's state, the
tensors of these blocks have the leading axes (M, B), so that members can still be dropped along axis 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """All blocks of one shape: `down` × `across` blocks of `height` × `width` elements, starting at (`top`, `left`).

    name: prefix of the names of the blocks' tensors in the state; empty for a matrix that is not split.
    """

    name: str
    top: int
    left: int
    height: int
    width: int
    down: int
    across: int

    @property
    def count(self) -> int:
        """The number of blocks B."""
        return self.down * self.across

    def cut(self, x: Tensor) -> Tensor:
        """Return the blocks of x (M, m, n) as (M·B, h, w); if the matrix is not split, x itself is returned."""
        if not self.name:
            return x
        found = self._grid(x).transpose(2, 3).reshape(-1, self.height, self.width)
        return found.contiguous()

    def put(self, blocks: Tensor, into: Tensor) -> None:
        """Write blocks (M·B, h, w) to their positions in `into` (M, m, n)."""
        grid = self._grid(into)
        grid.copy_(blocks.view(-1, self.down, self.across, self.height, self.width).transpose(2, 3))

    def spread(self, values: Tensor) -> Tensor:
        """Repeat each member's value (M,) for all of the member's blocks, (M·B,)."""
        return values.repeat_interleave(self.count) if self.name else values

    def opened(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return views of the blocks' tensors in `state` with a single leading axis M·B, by name without the prefix."""
        if not self.name:
            return state
        own = {key.removeprefix(self.name): value for key, value in state.items() if key.startswith(self.name)}
        return {key: value.view(-1, *value.shape[2:]) for key, value in own.items()}

    def close(self, own: dict[str, Any], state: dict[str, Any]) -> None:
        """Write tensors from `opened` back to `state`, including additions, replacements and removals."""
        if not self.name:
            return
        for key in [key for key in state if key.startswith(self.name)]:
            del state[key]
        state |= {self.name + key: value.view(-1, self.count, *value.shape[1:]) for key, value in own.items()}

    def _grid(self, x: Tensor) -> Tensor:
        """Return a view of the blocks of x (M, m, n) with shape (M, down, height, across, width)."""
        rows, columns = self.down * self.height, self.across * self.width
        place = x[:, self.top : self.top + rows, self.left : self.left + columns]
        return place.view(len(x), self.down, self.height, self.across, self.width)


def parts(rows: int, columns: int, size: int | None, longest: int) -> tuple[Part, ...]:
    """Return the blocks of a matrix, grouped by shape: at most four parts, or one part if `size` is None.

    Sides are split every `size` rows or columns, with a smaller last block; sides longer than `longest` are not split.
    """
    spans = [*itertools.product(_spans(rows, size, longest), _spans(columns, size, longest))]
    whole = len(spans) == 1 and spans[0][0][2] == spans[0][1][2] == 1
    return tuple(
        Part("" if whole else f"{i}:", top, left, height, width, down, across)
        for i, ((top, height, down), (left, width, across)) in enumerate(spans)
    )


def joined(blocks: Mapping[Part, Tensor], like: Tensor) -> Tensor:
    """Join the blocks of each part, (M·B, h, w), into matrices (M, m, n) with the shape and dtype of `like`."""
    whole = [found for part, found in blocks.items() if not part.name]
    if whole:
        return whole[0]
    result = torch.empty_like(like, memory_format=torch.contiguous_format)
    for part, found in blocks.items():
        part.put(found, result)
    return result


def block_side(length: int, size: int | None, longest: int) -> int:
    """Return the length of the largest block along a side of length `length`."""
    return length if size is None or length > longest else min(length, size)


def _spans(length: int, size: int | None, longest: int) -> Iterator[tuple[int, int, int]]:
    """Yield, for each block length along a side, the start of the first block, the length and the number of blocks."""
    block = block_side(length, size, longest)
    count, rest = divmod(length, block) if block else (1, 0)
    yield 0, block, count
    if rest:
        yield length - rest, rest, 1
