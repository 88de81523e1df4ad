"""A recorder for work on a CPU that behaves like a CUDA graph: it replays the same kernels on the same memory.

As with CUDA graphs, values computed in Python during the recording are frozen into it, and work that reads the value of
a tensor cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKING = (
    "aten._local_scalar_dense",
    "aten.item",
    "aten.nonzero",
    "aten.masked_select",
    "aten.equal",
    "aten.is_nonzero",
)


class Tape(TorchDispatchMode):
    """Record every operation with the tensor objects of its arguments and results."""

    made = 0
    """The number of tapes recorded so far."""
    played = 0
    """The number of replays of all tapes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any], bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(ASKING):
            raise RuntimeError(f"{func} is not permitted when a stream is recorded")
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        results = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        fresh = [t for t in results if t.untyped_storage().data_ptr() not in given]
        # Results in existing memory are views of arguments or were written in place.
        self.operations.append((func, args, kwargs, results, bool(fresh)))
        return found

    def replay(self) -> None:
        Tape.played += 1
        with torch.no_grad():
            for func, args, kwargs, results, fresh in self.operations:
                found = func(*args, **kwargs)
                if fresh:
                    for kept, new in zip(results, tree_leaves(found), strict=False):
                        kept.detach().copy_(new)


def tape(work: Callable[[], object]) -> Callable[[], None]:
    """Record work on a tape; a `Recorder`."""
    recording = Tape()
    with recording:
        work()
    Tape.made += 1
    return recording.replay
