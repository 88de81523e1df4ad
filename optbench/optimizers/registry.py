"""The registry of optimizers: specs, checks of settings, and defaults. This module does not import torch.

To add an optimizer, add its spec to `from_torch`, `from_pytorch_optimizer` or `ours`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optbench.errors import OptimizerError, unknown
from optbench.optimizers.from_pytorch_optimizer import PYTORCH_OPTIMIZER
from optbench.optimizers.from_torch import TORCH
from optbench.optimizers.needs import check_given, declared_needs
from optbench.optimizers.ours import OURS
from optbench.optimizers.spec import DECLARATIONS, NEEDS, OptimizerSpec
from optbench.targets.source import TargetError, check_names_attribute

OPTIMIZERS: Mapping[str, OptimizerSpec] = {spec.name: spec for spec in (*TORCH, *PYTORCH_OPTIMIZER, *OURS)}


def is_plugin(target: str) -> bool:
    """Return whether `target` is `module:Class` or `./file.py:Class` rather than a registered name."""
    return ":" in target


def find(target: str) -> OptimizerSpec:
    """Return the spec of a registered optimizer, or a spec in the per-member lane for a plug-in.

    Raises:
        OptimizerError: no optimizer has this name.
    """
    if target in OPTIMIZERS:
        return OPTIMIZERS[target]
    if is_plugin(target):
        return OptimizerSpec(target, target, "per-member", "a user's optimizer", "", "as it needs", source="yours")
    try:
        check_names_attribute(target)
    except TargetError as error:
        raise OptimizerError(*error.args) from None
    raise OptimizerError(unknown("optimizer", target, OPTIMIZERS) + " (or module:Class, or ./file.py:Class)")


def user_targets(target: str, hyperparameters: Mapping[str, Any]) -> frozenset[str]:
    """Return the user-defined targets of an optimizer and of all optimizers nested in it."""
    found = {target} if is_plugin(target) else set()
    for name, hyper in find(target).hyperparameters.items():
        if hyper.kind == "optimizer" and isinstance(hyperparameters.get(name), Mapping):
            found |= user_targets(*base_settings(target, hyperparameters[name]))
    return frozenset(found)


def check_settings(target: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check the names and values of an optimizer's hyper-parameters.

    For a plug-in, only declarations, values of the form `{given: ...}` and the finiteness of numbers are checked. All
    other checks follow after the plug-in is loaded (`load.check_arguments`).

    Raises:
        OptimizerError: the optimizer or a hyper-parameter is unknown, a value is invalid, or a wrapper does not support
            its base.
    """
    spec = find(target)
    for name, value in hyperparameters.items():
        if is_plugin(target):
            if name in DECLARATIONS:
                _check_declaration(name, value)
            check_given(name, value)
            if isinstance(value, float) and not math.isfinite(value):
                raise OptimizerError(f"hyper-parameter '{name}': expected a finite number, got {value!r}")
            continue
        if name not in spec.hyperparameters:
            raise OptimizerError(unknown("hyper-parameter", name, spec.hyperparameters, target))
        problem = spec.hyperparameters[name].problem(value)
        if problem is not None:
            raise OptimizerError(f"hyper-parameter '{name}' of {target}: {problem}")
        if spec.hyperparameters[name].kind == "optimizer":
            base, settings = base_settings(target, value)
            try:
                check_settings(base, settings)
            except OptimizerError as error:
                raise OptimizerError(f"hyper-parameter '{name}' of {target}: {error}") from None
            if find(target).lane == "its base's":
                if target in around(base, settings):
                    raise OptimizerError(
                        f"hyper-parameter '{name}': expected {target} only once, got it inside another {target}"
                    )
                continue
            if find(base).lane == "its base's":
                raise OptimizerError(f"{target} cannot wrap {base}; expected {base} outermost, with {target} inside")
            if needs := find(base).needs - {"random"}:
                raise OptimizerError(f"{target} cannot wrap {base}, which needs {', '.join(sorted(needs))}")
    problem = spec.conflict(hyperparameters) if spec.conflict else None
    if problem is not None:
        raise OptimizerError(f"{target}: {problem}")


def stepping(target: str, hyperparameters: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the target and hyper-parameters of the outermost optimizer whose lane is not `its base's`.

    hyperparameters: the complete hyper-parameters, as returned by `complete`.
    """
    while find(target).lane == "its base's":
        target, hyperparameters = base_settings(target, hyperparameters["base"])
    return target, hyperparameters


def around(target: str, hyperparameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the hyper-parameters of the wrappers with the lane `its base's`, by name, outermost first."""
    found: dict[str, Mapping[str, Any]] = {}
    while find(target).lane == "its base's":
        found[target] = hyperparameters
        if "base" not in hyperparameters:
            break
        target, hyperparameters = base_settings(target, hyperparameters["base"])
    return found


def defaults_inside(target: str, hyperparameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the default of each inner optimizer that `hyperparameters` omits, by path, e.g. `base` or `base.base`."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, hyper in find(target).hyperparameters.items():
        if hyper.kind != "optimizer":
            continue
        inner = hyperparameters.get(name, hyper.default)
        if name not in hyperparameters:
            found[name] = inner
        if isinstance(inner, Mapping):
            below = defaults_inside(*base_settings(target, inner))
            found |= {f"{name}.{place}": default for place, default in below.items()}
    return found


def without_schedule(target: str, hyperparameters: Mapping[str, Any]) -> str | None:
    """Return the target of the outermost optimizer that does not support a schedule; None if all support one."""
    spec = find(target)
    if not spec.takes_schedule or (is_plugin(target) and "no-schedule" in declared_needs(hyperparameters)):
        return target
    for name, hyper in spec.hyperparameters.items():
        if hyper.kind == "optimizer":
            found = without_schedule(*base_settings(target, hyperparameters.get(name, hyper.default)))
            if found is not None:
                return found
    return None


def check_names(target: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check that an optimizer and all optimizers nested in it are known, without checking hyper-parameters.

    Raises:
        OptimizerError: an optimizer is unknown.
    """
    for name, hyper in find(target).hyperparameters.items():
        if hyper.kind == "optimizer" and name in hyperparameters:
            value = hyperparameters[name]
            check_names(*base_settings(target, value if isinstance(value, Mapping) else {}))


def _check_declaration(name: str, value: Any) -> None:
    if name in ("elementwise", "only_matrices") and not isinstance(value, bool):
        raise OptimizerError(f"'{name}': expected true or false, got {value!r}")
    if name == "needs":
        words = value.split() if isinstance(value, str) else [str(value)]
        for word in words:
            if word not in NEEDS:
                raise OptimizerError(f"'needs': {unknown('need', word, NEEDS)}")
        if {"modes", "no-modes"} <= set(words):
            raise OptimizerError("'needs': expected either modes or no-modes, got both")


def complete(target: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters completed with the registry's defaults, in the registry's order.

    Hyper-parameters added in later versions are omitted unless given, so that the suites of stored runs do not change.
    """
    spec = find(target)
    written = {name: hyper for name, hyper in spec.hyperparameters.items() if not hyper.added}
    defaults = {name: list(h.default) if h.kind == "betas" else h.default for name, h in written.items()}
    if spec.presets:
        defaults |= spec.presets[hyperparameters.get("preset", defaults["preset"])]
    found = {**defaults, **hyperparameters}
    for name, hyper in spec.hyperparameters.items():
        if hyper.kind == "optimizer" and isinstance(found.get(name), Mapping):
            base, settings = base_settings(target, found[name])
            found[name] = {"target": base, **complete(base, settings)}
    return found


def base_settings(wrapper: str, base: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the target and the hyper-parameters of the optimizer inside a wrapper.

    Raises:
        OptimizerError: the base has no target.
    """
    settings = dict(base)
    target = settings.pop("target", None)
    if not isinstance(target, str):
        what = "expected an optimizer, as in {target: adamw, lr: 0.001}"
        raise OptimizerError(f"the base of {wrapper}: {what}, got {dict(base)}")
    return target, settings
