"""The optimizers known by name, and what is asked of them: a spec, checked settings, defaults. Imports no torch.

To add one: a line in `from_torch`, `from_pytorch_optimizer` or `ours`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optbench.errors import OptimizerError, unknown
from optbench.optimizers.from_pytorch_optimizer import PYTORCH_OPTIMIZER
from optbench.optimizers.from_torch import TORCH
from optbench.optimizers.ours import OURS
from optbench.optimizers.spec import OptimizerSpec

OPTIMIZERS: Mapping[str, OptimizerSpec] = {spec.name: spec for spec in (*TORCH, *PYTORCH_OPTIMIZER, *OURS)}


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
        return OptimizerSpec(target, target, "per-member", "a user's optimizer", "", "as it needs", source="yours")
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
