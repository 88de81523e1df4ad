"""Specs of optimizers (hyper-parameters, lane and needs), available without importing the optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from optbench.errors import hint

Lane = Literal["elementwise", "batched", "per-member", "its base's"]
"""`its base's` is the lane of a wrapper that adds to the loss or acts between tasks, while its base takes the steps."""
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
"""The needs of an optimizer beyond gradients and `step()`.

- `closure`: a closure, passed to `step`, that recomputes the loss and gradients on every call. Gradients exist before
  the first call.
- `loss`: a closure, passed to `step`, that returns the differentiable loss and leaves the backward pass to the
  optimizer. If `step` has an argument `loss` but no `closure`, the loss is passed by this name after a backward pass.
- `create_graph`: gradients that can be differentiated again.
- `modes`: calls of `train()` before steps and of `eval()` before measuring. `no-modes`: none of these calls, although
  the optimizer has methods with these names.
- `no-schedule`: a learning rate that `protocol.schedule` does not change.
- `random`: the global random generators, which are seeded for each step from the trial's stream.
- `around_forward`: a call of the optimizer's method with this name around each forward and backward pass; the method
  returns a context manager.

The following values are passed to constructor arguments with the same name:

- `generator`: the trial's `torch.Generator`
- `model`: the trial's network, whose hooks are called in every forward and backward pass of training
- `named_parameters`: pairs of name and parameter
- `total_steps`: the number of steps without early stopping

If the first argument is one of these or the model by another name (see `needs.first_given`), it replaces the
parameters.

`examples`, the number of training examples in the task at construction, can only be passed as `{given: examples}`.
"""
NEEDS: tuple[Need, ...] = tuple(need for need in get_args(Need) if need not in ("examples", "around_forward"))
"""Needs that can be listed under `needs` in a suite."""
GIVEN: tuple[Need, ...] = ("generator", "model", "named_parameters", "total_steps")
"""Needs that are passed to constructor arguments of the same name."""
GIVEN_VALUES: tuple[Need, ...] = (*GIVEN, "examples")
"""Values of the trial that can be passed to any argument, as in `ess: {given: examples}`."""
DECLARATIONS = ("needs", "elementwise", "only_matrices")
"""Declarations about a user's optimizer; written next to its hyper-parameters, but not passed to its constructor."""
FALLBACK = "fallback_"
"""Prefix of hyper-parameters that are passed to the fallback of an optimizer that trains only matrices."""


@dataclass(frozen=True)
class Hyper:
    """One hyper-parameter: its default and valid values. `low` and `high` are inclusive bounds (see also `above`)."""

    default: Any
    kind: Literal["number", "integer", "boolean", "choice", "betas", "optimizer"] = "number"
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    """True if a number must be greater than `low`, not equal to it."""
    choices: tuple[str, ...] = ()
    """Words that are valid values; for a numeric kind, they are valid in addition to numbers."""
    optional: bool = False
    """True if null is valid."""
    added: bool = False
    """True if runs of earlier versions lack the hyper-parameter. It is then omitted from suites unless given, so that
    the hashes of suites do not change."""

    def problem(self, value: Any) -> str | None:
        """Return the problem with `value`, e.g. "expected a number above 0, got 'fast'"; None if it is valid."""
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
    """The description of an optimizer, available without importing the optimizer.

    `per_member` names the hyper-parameters that can differ between the members of a cohort. Trials that differ in any
    other hyper-parameter are trained in separate cohorts.
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
    """Hyper-parameters in `per_member` for which a value of 0 needs less state. Members with this value form separate
    cohorts, so that no member holds unused state."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values of the hyper-parameters that have no default, for each value of `preset`."""
    arguments_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Constructor arguments, by device type, with which optbench selects an implementation of the same update."""
    recordable: bool = False
    """True if, after the first steps, every step on an accelerator does the same work on the same tensors, without
    counters or decisions in Python, so that it can be recorded and replayed."""
    conflict: Callable[[Mapping[str, Any]], str | None] | None = None
    """A function that returns the problem with a combination of individually valid values, or None."""
    source: Origin = "optbench"
    """The origin of the optimizer; `pytorch-optimizer` is installed by the extra `optimizers`."""
    needs: frozenset[Need] = frozenset()
    """The needs of the optimizer beyond gradients and `step()`."""
    takes_schedule: bool = True
    """True if `protocol.schedule` scales the `lr`; False for optimizers that determine step lengths themselves, or
    average weights instead of using a schedule."""
    only_matrices: bool = False
    """True if the optimizer trains only weights with two axes. All other parameters, and the ends, are trained by
    `fallback` with separate settings."""
    fallback: str = "adamw"
    interval: str = ""
    """The hyper-parameter for the steps between refreshes of roots, inverses or bases; empty if there is none."""
    at_the_ends: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ for a network's ends (`optimizers.ends`), which form a separate parameter group."""
    step_cost: float = 1.0
    """Approximate duration of a step relative to SGD, on MNIST with 100 hidden units on a CPU (benchmarks/RESULTS.md);
    for a wrapper, excluding the step of its base. Used only for scheduling and for estimating the remaining time."""
