"""From an optimizer's target to its class, and the arguments that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from optbench import targets
from optbench.errors import OptimizerError, unknown
from optbench.optimizers.needs import PARAMETERS, given_name
from optbench.optimizers.registry import base_settings, check_settings, find, is_plugin
from optbench.optimizers.spec import DECLARATIONS, FALLBACK, GIVEN

EXTRAS = {"pytorch_optimizer": "optimizers"}
"""Packages that the registry knows of but a plain install lacks, and the extra that brings them."""


def load_class(target: str) -> type[torch.optim.Optimizer]:
    """Return the optimizer class behind a registered name, `module:Class` or `./file.py:Class`.

    Raises:
        OptimizerError: the module cannot be imported (when an extra is missing, it says which), has no such class, or
            the class is no `torch.optim.Optimizer`.
    """
    named = find(target).target
    try:
        found = targets.load(named)
    except targets.TargetError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
            extra = EXTRAS[cause.name]
            needed = f"optimizer '{target}' needs the extra '{extra}': pip install 'optbench[{extra}]'"
            raise OptimizerError(needed) from cause
        raise OptimizerError(*error.args) from cause
    attribute = named.rpartition(":")[2]
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise OptimizerError(f"{target}: needs a subclass of torch.optim.Optimizer; '{attribute}' is {_kind(found)}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise OptimizerError(f"{target}: '{attribute}' is abstract: it lacks {', '.join(missing)}")
    return found


def check_arguments(target: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check a plug-in's hyper-parameters against its constructor's signature.

    Raises:
        OptimizerError: the class cannot be loaded, does not take one of the names, or needs one that is not given.
    """
    cls = load_class(target)
    if not is_plugin(target):
        # The registry has checked these; what stands inside them may be a user's.
        for name, hyper in find(target).hyperparameters.items():
            if hyper.kind == "optimizer":
                check_arguments(*base_settings(target, hyperparameters[name]))
        return
    if hyperparameters.get("only_matrices") is True:
        rest = {name: value for name, value in hyperparameters.items() if name.startswith(FALLBACK)}
        check_settings(find(target).fallback, {name.removeprefix(FALLBACK): value for name, value in rest.items()})
        hyperparameters = {name: value for name, value in hyperparameters.items() if name not in rest}
    first, *parameters = _parameters(cls, target) or [inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)]
    instead = first.name in GIVEN or given_name(hyperparameters.get(first.name)) is not None
    if instead:  # of the parameters, which may follow: `(model, params)`
        parameters = [first, *(p for p in parameters if p.name not in PARAMETERS)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in hyperparameters:
        if name not in names and not takes_any and name not in DECLARATIONS:
            raise OptimizerError(unknown(f"hyper-parameter of {target}", name, names))
    given = {*hyperparameters, *GIVEN}  # the trial's own, where they are asked for
    missing = [name for name, p in names.items() if p.default is p.empty and name not in given]
    if missing:
        raise OptimizerError(f"{target} needs a value for {', '.join(missing)}, as in {missing[0]}: ...")


def default_of(target: str, argument: str) -> Any:
    """The default that a plug-in's constructor has for an argument; None where it has none.

    Raises:
        OptimizerError: the class cannot be loaded, or its constructor not be read.
    """
    found = next((p for p in _parameters(load_class(target), target) if p.name == argument), None)
    return None if found is None or found.default is found.empty else found.default


def _parameters(cls: type[torch.optim.Optimizer], target: str) -> list[inspect.Parameter]:
    """The parameters of the constructor.

    Raises:
        OptimizerError: it cannot be read.
    """
    try:
        return list(inspect.signature(cls).parameters.values())
    except (ValueError, TypeError) as error:
        raise OptimizerError(
            f"{target}: the arguments of its constructor cannot be read: {targets.said(error)}"
        ) from error


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else f"of type {type(value).__name__}"
