"""Estimates of the memory that a measurement needs, made by doing its work on the `meta` device.

The device allocates nothing. Every tensor is counted for as long as it exists, so the peak includes temporaries.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from optbench.costing import networks
from optbench.costing.sizes import Size
from optbench.engine.lanes.reach import state_bytes

ALLOWANCE = 160 << 20
"""Bytes reserved for libraries: kernels, BLAS buffers, and memory that the allocator caches."""
SLACK = 1.1
"""Factor applied to the estimate, because allocators round sizes up."""
Make = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Estimate:
    """The estimated memory, in bytes.

    state: the optimizer's state; None if unknown.
    total: peak memory, not counting what the process uses before the measurement.
    """

    state: int | None
    total: int


class Footprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that counts the bytes of live tensors.

    live: the current number of bytes. peak: the highest number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, unless it has been counted already."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size).atexit = False

    def _gone(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return found


def estimate(size: Size, make: Make, *, users: bool, planned: bool) -> Estimate:
    """Estimate the memory that two steps of an optimizer need on the network of the given size.

    Args:
        make: function that constructs the optimizer for a network.
        users: True for a user's optimizer; see `state_bytes`.
        planned: whether to use the estimate returned by the optimizer's method `planned`, if the optimizer has one.
            Optimizers whose work depends on the data have this method.
    """
    with Footprint() as footprint:
        model = networks.network(size, "meta")
        for p in model.parameters():
            footprint.add(p)
        known: tuple[int, int] | None = None
        optimizer = None
        try:
            optimizer = make(model)
            if planned and hasattr(optimizer, "planned"):
                known = optimizer.planned(size.tokens)
                for module in model.modules():  # hooks are data-dependent, too
                    module._forward_hooks.clear()
                    module._forward_pre_hooks.clear()
        except Exception:  # a user's constructor may raise anything; the measurement will report it
            pass
        batch = networks.batch(size, 0, "meta")
        told = known is not None

        activations = 0

        def evaluated(*_: object, **__: object) -> Tensor:
            nonlocal activations
            before = footprint.live
            loss = networks.loss(model(*batch.inputs), batch.targets)
            activations = max(activations, footprint.live - before)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        for _ in range(2):
            evaluated()
            if optimizer is not None and known is None:
                told = _stepped(optimizer) or _stepped(optimizer, evaluated)
            model.zero_grad()
    held = state_bytes(optimizer, model, users=users) if optimizer is not None else 0
    state, work = known if known is not None else (held, 0)
    # A backward pass frees activations in pieces, whose memory may not be reusable for gradients.
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    total = footprint.peak + min(activations, gradients) + (state + work if known is not None else 0)
    return Estimate(state if told or held else None, round(SLACK * total) + ALLOWANCE)


def _stepped(optimizer: torch.optim.Optimizer, *closure: Callable[..., Tensor]) -> bool:
    """Try a step on tensors without values, and return whether it succeeded; a step that needs values fails."""
    with contextlib.suppress(Exception):
        optimizer.step(*closure)  # type: ignore[arg-type]
        return True
    return False
