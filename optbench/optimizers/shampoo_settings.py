"""The settings of a Shampoo parameter group: choices and ranges."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from optbench.errors import unknown
from optbench.optimizers.newton_root import iterations_for
from optbench.precision import exact

PerMember = float | Tensor
"""A hyper-parameter: one number, or a tensor (M,) with one per member."""

CHOICES = {
    "structure": ("kronecker", "diagonal-factor"),
    "momentum_form": ("heavy-ball", "average"),
    "grafting": ("none", "adam"),
    "root": ("eigh", "newton"),
    "root_precision": ("auto", "float64", "float32"),
}
# name -> (low, high, whether high itself is allowed)
RANGES = {
    "lr": (0.0, math.inf, False),
    "momentum": (0.0, 1.0, False),
    "beta2": (0.0, 1.0, True),
    "epsilon": (0.0, 1.0, True),
    "initial_epsilon": (0.0, math.inf, False),
    "weight_decay": (0.0, math.inf, False),
    "graft_epsilon": (0.0, math.inf, False),
    "refresh_share": (0.0, math.inf, False),
}
COUNTS = {"precondition_frequency": 1, "small_side": 0, "max_side": 1, "block_size": 1}
AUTO = "auto"


def check_group(group: dict[str, Any]) -> None:
    """Raise ValueError if a setting is out of range or does not fit the group's parameters.

    With `root="newton"`, the smallest epsilon of all members is stored in the group.
    """
    for name, (low, high, closed) in RANGES.items():
        value = group[name]
        numbers = numbers_of(value)
        fits = (numbers >= low) & ((numbers <= high) if closed else (numbers < high))
        if not bool(fits.all()):
            raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}{']' if closed else ')'}, got {value!r}")
    for name, least in COUNTS.items():
        value = group[name]
        if (name, value) in (("small_side", None), ("block_size", None), ("precondition_frequency", AUTO)):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            word = f" or {AUTO!r}" if name == "precondition_frequency" else ""
            raise ValueError(f"{name}: expected an integer of at least {least}{word}, got {value!r}")
    for name, choices in CHOICES.items():
        if group[name] not in choices:
            raise ValueError(unknown(name, str(group[name]), choices))
    if group["root"] == "newton":
        smallest = float(numbers_of(group["epsilon"]).min())
        if smallest <= 0:
            raise ValueError(f"epsilon: expected a number above 0 with root='newton', got {group['epsilon']!r}")
        group["smallest_epsilon"] = smallest
        for order in (2, 4):
            iterations_for(order, smallest)  # raises if too many would be needed
    if isinstance(group["graft_epsilon"], Tensor):
        raise ValueError("graft_epsilon: expected one number, got a tensor")
    members = None if group["stacked"] else 1
    for parameter in group["params"]:
        if not parameter.is_floating_point():
            raise ValueError(f"Shampoo: expected real floating-point parameters, got one of dtype {parameter.dtype}")
        if group["stacked"]:
            if parameter.ndim == 0 or members not in (None, parameter.shape[0]):
                as_others = f"a leading axis of length {members}, as in the other parameters"
                needed = "a leading member axis" if members is None else as_others
                raise ValueError(f"stacked parameter: expected {needed}, got shape {tuple(parameter.shape)}")
            members = parameter.shape[0]
    for name in RANGES:
        shape = tuple(group[name].shape) if isinstance(group[name], Tensor) else ()
        if shape not in ((), (members,)):
            raise ValueError(f"{name}: expected a number or a tensor of shape ({members},), got shape {shape}")


def numbers_of(value: Any) -> Tensor:
    """Return a hyper-parameter as a float64 tensor; NaN if it is neither a number nor a tensor."""
    if isinstance(value, Tensor):
        return exact(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return torch.tensor(float(value) if number else math.nan, dtype=torch.float64)
