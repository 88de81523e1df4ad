"""The parameter groups that hold an optimizer's learning rates, and scaling of these rates for one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]


def rate_groups(optimizer: object, *, stepping: bool = False) -> list[Group]:
    """Return the parameter groups whose learning rate, `lr`, the optimizer will use in its next step.

    These are the optimizer's own groups, as for PyTorch's schedulers. If none of them has a learning rate, the groups
    of the optimizers in this optimizer's attributes are returned. If an optimizer of this package has a method
    `rate_groups(stepping)`, the result of this method is returned instead.

    stepping: whether a step follows immediately, for optimizers that must prepare for it.
    """
    return list({id(group): group for group in _found(optimizer, stepping, set())}.values())


def _found(optimizer: object, stepping: bool, seen: set[int]) -> Iterator[Group]:
    if id(optimizer) in seen:
        return
    seen.add(id(optimizer))
    ours = type(optimizer).__module__.startswith("optbench.")
    if ours and (named := getattr(optimizer, "rate_groups", None)) is not None:
        yield from named(stepping)
        return
    groups = getattr(optimizer, "param_groups", None)
    own = [group for group in groups if _has_rate(group)] if isinstance(groups, list) else []
    yield from own
    for value in () if own else getattr(optimizer, "__dict__", {}).values():
        for inside in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inside, torch.optim.Optimizer):
                yield from _found(inside, stepping, seen)


def _has_rate(group: object) -> bool:
    rate = group.get("lr") if isinstance(group, dict) else None
    return isinstance(rate, Tensor | int | float) and not isinstance(rate, bool)


def first_rate(groups: Sequence[Group]) -> float | None:
    """Return the learning rate of the first group.

    None if there are no groups, or if the learning rate is a tensor with several values.
    """
    rate = groups[0]["lr"] if groups else None
    if isinstance(rate, Tensor) and rate.numel() != 1:
        return None
    return None if rate is None else float(rate)


@contextlib.contextmanager
def scaled(groups: Sequence[Group], factor: float) -> Iterator[None]:
    """Multiply the learning rates by `factor` > 0 within a `with` block that takes a step.

    After the block, the learning rates are restored bit for bit. A learning rate that the optimizer changed in the
    block is divided by the factor instead, so that the change persists, as with PyTorch's chainable schedulers.
    """
    kept = [_scale(group, factor) for group in groups]
    try:
        yield
    finally:
        for group, (before, now, version) in zip(groups, kept, strict=True):
            _put_back(group, before, now, version, factor)


def _scale(group: Group, factor: float) -> tuple[Any, Any, int]:
    """Scale a group's learning rate.

    Returns:
        the previous value, the object now in the group, and that object's version if it is a tensor, otherwise 0.
    """
    rate = group["lr"]
    if not isinstance(rate, Tensor):
        group["lr"] = rate * factor
        return rate, group["lr"], 0
    with torch.no_grad():
        before = rate.detach().clone()
        rate.mul_(factor)  # in place: other objects may share it, and a recorded step reads its memory
    return before, rate, rate._version


def _put_back(group: Group, before: Any, now: Any, version: int, factor: float) -> None:
    rate = group.get("lr")
    with torch.no_grad():
        if not isinstance(rate, Tensor):
            if _has_rate(group):
                group["lr"] = before if type(rate) is type(now) and rate == now else group["lr"] / factor
        # comparing values would synchronise the device
        elif rate is now and rate._version == version:
            rate.copy_(before)
        else:
            rate.div_(factor)
