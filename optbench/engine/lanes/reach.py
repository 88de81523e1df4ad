"""The memory of an optimizer's state, wherever the state is stored."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from optbench.engine.contents import parts, place

_KNOWN = ("torch", "optbench", "pytorch_optimizer")
"""Packages whose optimizers store their state in `state`; their other tensors are temporaries."""
_LEAVES = (int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType, torch.Generator)


def state_bytes(optimizer: torch.optim.Optimizer, network: nn.Module, *, users: bool) -> int:
    """Return the number of bytes of an optimizer's state, counting each storage once.

    users: True for a user's optimizer. In this case, all reachable tensors count, including the state of inner
        optimizers and buffers in attributes, but not the network's parameters, buffers and gradients. False for a
        registered optimizer. In this case, only its `state` and any users' optimizers inside it are searched.
    """
    known = list(network.modules())
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    excluded = {place(tensor) for tensor in (*network.parameters(), *network.buffers(), *gradients)}
    found: dict[int, int] = {}
    met = {id(thing) for thing in known}
    waiting: list[Any] = [optimizer] if users else [optimizer.state, *_users_inside(optimizer)]
    while waiting:
        item = waiting.pop()
        if item is None or isinstance(item, _LEAVES) or id(item) in met:
            continue
        met.add(id(item))
        if isinstance(item, Tensor):
            if item.layout is torch.strided and (where := place(item)) not in excluded:
                found[where] = item.untyped_storage().nbytes()
            elif item.layout is not torch.strided:  # e.g. sparse tensors, with separate storages for indices and values
                found[id(item)] = item.element_size() * item._nnz()
        else:
            waiting += [part for _, part in parts(item)]
    return sum(found.values())


def _users_inside(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return the users' optimizers inside a registered wrapper, at any depth."""
    found = []
    for inside in vars(optimizer).values():
        if isinstance(inside, torch.optim.Optimizer):
            own = type(inside).__module__.partition(".")[0] not in _KNOWN
            found += [inside] if own else _users_inside(inside)
    return found
