"""What optbench knows of an optimizer without importing it: hyper-parameters, lane, and what it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from optbench.errors import hint

Lane = Literal["elementwise", "batched", "per-member", "its base's"]
"""`its base's`: it adds to the loss or acts between tasks, and leaves the steps and their state to its base alone."""
Origin = Literal["torch", "pytorch-optimizer", "optbench", "yours"]
Need = Literal[
    "closure",
    "create_graph",
    "modes",
    "no-modes",
    "no-schedule",
    "loss",
    "random",
    "generator",
    "model",
    "total_steps",
    "named_parameters",
    "examples",
    "around_forward",
]
"""What an optimizer needs beyond gradients and `step()`.

`closure`: `step(closure)`, which evaluates loss and gradients anew, as often as it is called; the gradients are there
before the first call. `loss`: a closure that returns the differentiable loss and leaves the backward pass to the
optimizer; for a `step` with an argument `loss` and none `closure`, the loss by this name after a backward pass.
`create_graph`: gradients that can be differentiated again. `modes`: `train()` before steps and `eval()` before
measuring; `no-modes`: neither, although it has methods of these names. `no-schedule`: that `protocol.schedule` leaves
its rate alone. `random`: it draws from the global generators,
which are seeded for each of its steps from the trial's own.

Arguments of the constructor, by these names: `generator`, a `torch.Generator` of the trial's own; `model`, the trial's
own network, whose hooks see every forward and backward pass in training; `named_parameters`, pairs of name and
parameter; `total_steps`, how many steps there will be unless early stopping ends a task sooner. Where the first
argument is `named_parameters` or the model (see `needs.first_given`), it takes the place of the parameters.

`examples`, the number of training examples of the task at which it is made, is only given as a value.
`around_forward`: a method of this name returns a context manager, entered around each forward and backward pass."""
NEEDS: tuple[Need, ...] = tuple(need for need in get_args(Need) if need not in ("examples", "around_forward"))
"""The words of `needs` in a suite."""
GIVEN: tuple[Need, ...] = ("generator", "model", "named_parameters", "total_steps")
"""The needs that are arguments of the constructor by name."""
GIVEN_VALUES: tuple[Need, ...] = (*GIVEN, "examples")
"""What an argument of any name may be set to, as in `ess: {given: examples}`."""
DECLARATIONS = ("needs", "elementwise", "only_matrices")
"""Said of a user's optimizer beside its hyper-parameters, and not passed to it."""
FALLBACK = "fallback_"
"""Hyper-parameters with this prefix are those of the fallback of an optimizer that takes matrices only."""


@dataclass(frozen=True)
class Hyper:
    """One hyper-parameter: its default and what it may be. `low` and `high` bound numbers, inclusive unless `above`."""

    default: Any
    kind: Literal["number", "integer", "boolean", "choice", "betas", "optimizer"] = "number"
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    """The number must be greater than `low`, not equal to it."""
    choices: tuple[str, ...] = ()
    """Words that are values; of numbers, beside them."""
    optional: bool = False
    """Whether null is a value too."""
    added: bool = False
    """Whether runs of earlier versions lack it: unless given it is left out of suites, which so keep their hash."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with `value` ("expected a number above 0, got 'fast'"), or None."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if self.kind == "boolean":
            ok, needed = isinstance(value, bool), "true or false"
        elif self.kind == "choice":
            ok, needed = value in self.choices, " or ".join(repr(choice) for choice in self.choices)
        elif self.kind == "optimizer":
            ok = isinstance(value, Mapping) and isinstance(value.get("target"), str)
            needed = "an optimizer, as in {target: adamw, lr: 0.001}"
        elif self.kind == "betas":
            ok = isinstance(value, list | tuple) and len(value) == len(self.default)
            ok = ok and all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 1 for v in value)
            ok = ok and not (self.above and 0 in value)
            count = "two" if len(self.default) == 2 else len(self.default)
            needed = f"{count} numbers in {'(' if self.above else '['}0, 1)"
        else:
            ok = number and (value > self.low if self.above else value >= self.low) and value <= self.high
            ok = (ok and (self.kind == "number" or isinstance(value, int))) or value in self.choices
            needed = "an integer" if self.kind == "integer" else "a number"
            if math.isfinite(self.low):
                needed += f" {'above' if self.above else 'of at least'} {self.low:g}"
            needed += f" and at most {self.high:g}" if math.isfinite(self.high) else ""
            needed += "".join(f" or {choice!r}" for choice in self.choices)
        if ok or (value is None and self.optional):
            return None
        return f"expected {needed}, got {value!r}{hint(value, self.choices)}"


LR, WEIGHT_DECAY = Hyper(1e-3, above=True), Hyper(0.0)
BETAS = Hyper((0.9, 0.999), "betas")
ADAM = {"lr": LR, "betas": BETAS, "eps": Hyper(1e-8), "weight_decay": WEIGHT_DECAY}
ON, OFF = Hyper(True, "boolean"), Hyper(False, "boolean")


@dataclass(frozen=True)
class OptimizerSpec:
    """What optbench knows of an optimizer without importing it.

    `per_member` names the hyper-parameters that may differ between the members of one cohort; trials that differ in
    any other one are trained in cohorts of their own.
    """

    name: str
    target: str
    lane: Lane
    summary: str
    reference: str
    state: str
    hyperparameters: Mapping[str, Hyper] = field(default_factory=dict)
    per_member: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    """Those of `per_member` without which, at 0, there is less state: members with and without are no cohort, so that
    none holds state it does not use."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values of the hyper-parameters without a default, by the value of the hyper-parameter `preset`."""
    arguments_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Arguments that are optbench's business, not the user's (which implementation of the same update to use), by the
    kind of device."""
    recordable: bool = False
    """On an accelerator its step is, after the first ones, the same work on the same tensors every time: Python counts
    nothing and decides nothing. Such a step can be recorded and replayed."""
    conflict: Callable[[Mapping[str, Any]], str | None] | None = None
    """What is wrong with values that are fine one by one, if anything."""
    source: Origin = "optbench"
    """Who wrote it; `pytorch-optimizer` comes with the extra `optimizers`."""
    needs: frozenset[Need] = frozenset()
    """What it requires of a training loop, beyond gradients and `step()`."""
    takes_schedule: bool = True
    """Whether `protocol.schedule` scales its `lr`: False where it finds its step lengths itself, or averages weights in
    the place of a schedule."""
    only_matrices: bool = False
    """It takes weights of two axes only: all others, and the ends, go to `fallback`, with its own settings."""
    fallback: str = "adamw"
    interval: str = ""
    """The hyper-parameter that says how many steps lie between two refreshes of its roots, inverses or bases."""
    at_the_ends: Mapping[str, Any] = field(default_factory=dict)
    """What is set otherwise for a network's ends, see `optimizers.ends`: in a parameter group of their own."""
    step_cost: float = 1.0
    """About how many steps of SGD take as long as one of its own, its base's aside, on MNIST with 100 hidden units on a
    CPU (benchmarks/RESULTS.md): for the order of work and the time left, nothing else."""
