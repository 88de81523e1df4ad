"""The optimizers known by name: one line each, with hyper-parameters, defaults and lane. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optbench.errors import OptimizerError, nearest, unknown
from optbench.optimizers.presets import SHAMPOO_PRESETS

Lane = Literal["elementwise", "batched", "per-member"]


@dataclass(frozen=True)
class Hyper:
    """One hyper-parameter: its default and what it may be. `low` and `high` bound numbers, inclusive unless `above`."""

    default: Any
    kind: Literal["number", "integer", "boolean", "choice", "betas"] = "number"
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    """The number must be greater than `low`, not equal to it."""
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What is wrong with `value` ("needs a number above 0; 'fast' came"), or None."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if self.kind == "boolean":
            ok, needed = isinstance(value, bool), "true or false"
        elif self.kind == "choice":
            ok, needed = value in self.choices, " or ".join(repr(choice) for choice in self.choices)
            guess = nearest(value, self.choices) if isinstance(value, str) else None
            needed += f" (did you mean '{guess}'?)" if not ok and guess else ""
        elif self.kind == "betas":
            ok = isinstance(value, list | tuple) and len(value) == 2
            ok = ok and all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < 1 for v in value)
            needed = "two numbers in [0, 1)"
        else:
            ok = number and (value > self.low if self.above else value >= self.low) and value <= self.high
            ok = ok and (self.kind == "number" or isinstance(value, int))
            article = "an integer" if self.kind == "integer" else "a number"
            needed = f"{article} {'above' if self.above else 'of at least'} {self.low:g}"
            needed += f" and at most {self.high:g}" if math.isfinite(self.high) else ""
        return None if ok else f"needs {needed}; {value!r} came"


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
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values of the hyper-parameters without a default, by the value of the hyper-parameter `preset`."""
    extra_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that are optbench's business, not the user's (which implementation of the same update to use)."""


LR = Hyper(1e-3, above=True)
WEIGHT_DECAY = Hyper(0.0)
FUSED = {"fused": True}  # one pass over memory; the same update rule

_TORCH = (
    OptimizerSpec(
        name="sgd",
        target="torch.optim:SGD",
        lane="elementwise",
        summary="stochastic gradient descent, with optional momentum",
        reference="Robbins & Monro 1951; Sutskever et al. 2013",
        state="0 (1 with momentum)",
        hyperparameters={
            "lr": LR,
            "momentum": Hyper(0.0, high=1.0),
            "dampening": Hyper(0.0, high=1.0),
            "weight_decay": WEIGHT_DECAY,
            "nesterov": Hyper(False, "boolean"),
        },
        extra_arguments=FUSED,
    ),
    OptimizerSpec(
        name="adam",
        target="torch.optim:Adam",
        lane="elementwise",
        summary="first and second moments per weight, L2 regularisation in the gradient",
        reference="Kingma & Ba 2015, arXiv:1412.6980",
        state="2",
        hyperparameters={
            "lr": LR,
            "betas": Hyper((0.9, 0.999), "betas"),
            "eps": Hyper(1e-8),
            "weight_decay": WEIGHT_DECAY,
            "amsgrad": Hyper(False, "boolean"),
        },
        extra_arguments=FUSED,
    ),
    OptimizerSpec(
        name="adamw",
        target="torch.optim:AdamW",
        lane="elementwise",
        summary="Adam with decoupled weight decay",
        reference="Loshchilov & Hutter 2019, arXiv:1711.05101",
        state="2",
        hyperparameters={
            "lr": LR,
            "betas": Hyper((0.9, 0.999), "betas"),
            "eps": Hyper(1e-8),
            "weight_decay": Hyper(1e-2),
            "amsgrad": Hyper(False, "boolean"),
        },
        extra_arguments=FUSED,
    ),
    OptimizerSpec(
        name="adagrad",
        target="torch.optim:Adagrad",
        lane="elementwise",
        summary="divides by the root of the summed squared gradients: diagonal Shampoo with a sum",
        reference="Duchi et al. 2011",
        state="1",
        hyperparameters={
            "lr": Hyper(1e-2, above=True),
            "lr_decay": Hyper(0.0),
            "weight_decay": WEIGHT_DECAY,
            "initial_accumulator_value": Hyper(0.0),
            "eps": Hyper(1e-10),
        },
        extra_arguments=FUSED,
    ),
)

_OURS = (
    OptimizerSpec(
        name="shampoo",
        target="optbench.optimizers.shampoo:Shampoo",
        lane="batched",
        summary="preconditions rows and columns of a weight matrix; presets gupta, adam-grafted; diagonal control",
        reference="Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018",
        state="2(m²+n²) per m×n matrix in float64 and float32",
        hyperparameters={
            "preset": Hyper("gupta", "choice", choices=tuple(SHAMPOO_PRESETS)),
            "lr": Hyper(None, above=True),
            "momentum": Hyper(None, high=1.0),
            "beta2": Hyper(None, high=1.0),
            "epsilon": Hyper(1e-6, high=1.0),
            "initial_epsilon": Hyper(None),
            "weight_decay": WEIGHT_DECAY,
            "precondition_frequency": Hyper(10, "integer", low=1),
            "small_side": Hyper(128, "integer"),
            "max_side": Hyper(8192, "integer", low=1),
            "structure": Hyper("kronecker", "choice", choices=("kronecker", "diagonal-factor")),
            "momentum_form": Hyper(None, "choice", choices=("heavy-ball", "average")),
            "grafting": Hyper(None, "choice", choices=("none", "adam")),
            "graft_epsilon": Hyper(1e-8),
        },
        per_member=frozenset({"lr", "momentum", "beta2", "epsilon", "initial_epsilon", "weight_decay"}),
        presets=SHAMPOO_PRESETS,
    ),
)

OPTIMIZERS: Mapping[str, OptimizerSpec] = {spec.name: spec for spec in (*_TORCH, *_OURS)}


def is_plugin(target: str) -> bool:
    """Whether `target` is `module:Class` or `./file.py:Class` rather than a registered name."""
    return ":" in target


def find(target: str) -> OptimizerSpec:
    """The spec of a registered name, or a spec for a plug-in, which runs unmodified in the per-member lane.

    Raises:
        OptimizerError: no optimizer has this name.
    """
    if target in OPTIMIZERS:
        return OPTIMIZERS[target]
    if is_plugin(target):
        return OptimizerSpec(target, target, "per-member", "a user's optimizer", "", "as it needs")
    raise OptimizerError(unknown("optimizer", target, OPTIMIZERS) + ", or module:Class, or ./file.py:Class")


def check_settings(target: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check names and values of the hyper-parameters of a registered optimizer; a plug-in's are checked on import.

    Raises:
        OptimizerError: an unknown optimizer or hyper-parameter, or a value it cannot take.
    """
    spec = find(target)
    for name, value in hyperparameters.items():
        if is_plugin(target):
            if isinstance(value, float) and not math.isfinite(value):
                raise OptimizerError(f"hyper-parameter '{name}' needs a finite number; {value!r} came")
            continue
        if name not in spec.hyperparameters:
            raise OptimizerError(unknown(f"hyper-parameter of {target}", name, spec.hyperparameters))
        problem = spec.hyperparameters[name].problem(value)
        if problem is not None:
            raise OptimizerError(f"hyper-parameter '{name}' of {target} {problem}")


def complete(target: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters with the registry's defaults for those not given, in the registry's order."""
    spec = find(target)
    defaults = {name: list(h.default) if h.kind == "betas" else h.default for name, h in spec.hyperparameters.items()}
    if spec.presets:
        defaults |= spec.presets[hyperparameters.get("preset", defaults["preset"])]
    return {**defaults, **hyperparameters}
