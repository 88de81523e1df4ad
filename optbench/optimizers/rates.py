"""The learning rates of an optimizer: finding their parameter groups, and scaling them for one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]


def rate_groups(optimizer: object, *, stepping: bool = False) -> list[Group]:
    """Return the parameter groups whose learning rate, `lr`, the optimizer uses in its next step.

    These are its own groups, as for PyTorch's schedulers, or, if none has a learning rate, those of the optimizers in
    its attributes; built-in wrappers return them from `rate_groups(stepping)`. stepping: whether a step follows
    immediately, for optimizers that must prepare it.
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
    """Return the learning rate of the first group; None if there is none, or if it is a tensor of several values."""
    rate = groups[0]["lr"] if groups else None
    if isinstance(rate, Tensor) and rate.numel() != 1:
        return None
    return None if rate is None else float(rate)


@contextlib.contextmanager
def scaled(groups: Sequence[Group], factor: float) -> Iterator[None]:
    """Multiply the learning rates by `factor` > 0 within the block, which takes a step.

    After the block they are restored bit for bit. A learning rate that the optimizer changed in the block is divided by
    the factor instead, so that the change persists, as with PyTorch's chainable schedulers.
    """
    kept = [_scale(group, factor) for group in groups]
    try:
        yield
    finally:
        for group, (before, now, version) in zip(groups, kept, strict=True):
            _put_back(group, before, now, version, factor)


def _scale(group: Group, factor: float) -> tuple[Any, Any, int]:
    """Scale the learning rate of a group.

    Returns: its value before, the object now in the group, and the object's version if it is a tensor, otherwise 0.
    """
    rate = group["lr"]
    if not isinstance(rate, Tensor):
        group["lr"] = rate * factor
        return rate, group["lr"], 0
    with torch.no_grad():
        before = rate.detach().clone()
        rate.mul_(factor)  # in place: other objects may hold it, and a recorded step reads its memory
    return before, rate, rate._version


def _put_back(group: Group, before: Any, now: Any, version: int, factor: float) -> None:
    rate = group.get("lr")
    with torch.no_grad():
        if not isinstance(rate, Tensor):
            if _has_rate(group):
                group["lr"] = before if type(rate) is type(now) and rate == now else group["lr"] / factor
        # not by value, which would synchronise the device
        elif rate is now and rate._version == version:
            rate.copy_(before)
        else:
            rate.div_(factor)
