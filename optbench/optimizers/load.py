"""Loading of the class or function of an optimizer's target, and checks of its arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from optbench import targets
from optbench.errors import OptimizerError, unknown
from optbench.kinds import ANNOTATE, has_text, instead_of_text, meant, signature
from optbench.optimizers.needs import PARAMETERS, first_given, given_name
from optbench.optimizers.registry import base_settings, check_settings, find, is_plugin
from optbench.optimizers.spec import DECLARATIONS, FALLBACK, GIVEN

EXTRAS = {"pytorch_optimizer": "optimizers"}
"""Packages that registered optimizers need but a plain install lacks, each with the extra that installs it."""


CONFIG = ConfigDict(arbitrary_types_allowed=True)
EXPECTED = "a torch.optim.Optimizer, or a class or function that makes an object with `step` and `zero_grad`"


def load_factory(target: str) -> Callable[..., Any]:
    """Load the class or function of a target: a registered name, `module:attribute` or `./file.py:attribute`.

    Raises:
        OptimizerError: the module cannot be imported (if an extra is missing, the message names it), or the attribute
            does not exist or does not construct an optimizer.
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
    # a wrapper may delegate `step`
    passes_on = hasattr(found, "__getattr__") and not (inspect.isclass(found) and issubclass(found, nn.Module))
    stepless = inspect.isclass(found) and not hasattr(found, "step") and not passes_on
    if not callable(found) or stepless:
        what = f"the class {found.__name__} without `step`" if stepless else f"of type {type(found).__name__}"
        raise OptimizerError(f"{target}: expected {EXPECTED}; '{attribute}' is {what}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise OptimizerError(f"{target}: '{attribute}' is abstract: it lacks {', '.join(missing)}")
    factory: Callable[..., Any] = found
    return factory


def check_arguments(target: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check a plug-in's hyper-parameters against the signature of its class or function.

    Raises:
        OptimizerError: the plug-in cannot be loaded, does not accept one of the hyper-parameters, or
            requires one that is missing.
    """
    factory = load_factory(target)
    if not is_plugin(target):
        # The registry has already checked these, but an inner optimizer may be a user's.
        for name, hyper in find(target).hyperparameters.items():
            if hyper.kind == "optimizer":
                check_arguments(*base_settings(target, hyperparameters[name]))
        return
    if hyperparameters.get("only_matrices") is True:
        rest = {name: value for name, value in hyperparameters.items() if name.startswith(FALLBACK)}
        check_settings(find(target).fallback, {name.removeprefix(FALLBACK): value for name, value in rest.items()})
        hyperparameters = {name: value for name, value in hyperparameters.items() if name not in rest}
    first, *parameters = _parameters(factory, target) or [
        inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)
    ]
    instead = first_given(factory) is not None or given_name(hyperparameters.get(first.name)) is not None
    if instead:  # the parameters may follow, as in `(model, params)`
        parameters = [first, *(p for p in parameters if p.name not in PARAMETERS)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in hyperparameters:
        if name not in names and not takes_any and name not in DECLARATIONS:
            raise OptimizerError(unknown("hyper-parameter", name, names, str(target)))
    # provided by the trial
    given = {*hyperparameters, *GIVEN, *([first.name] if first_given(factory) is not None else [])}
    missing = [name for name, p in names.items() if p.default is p.empty and name not in given]
    if missing:
        raise OptimizerError(f"{target} needs a value for {', '.join(missing)}, as in {missing[0]}: ...")
    _check_types(factory, target, {name: value for name, value in hyperparameters.items() if name in names})


def _check_types(factory: Callable[..., Any], target: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check values against the annotations of a signature, except annotations whose types YAML cannot express.

    A parameter without an annotation does not accept text if its default is, for example, a number.

    Raises:
        OptimizerError: a value has the wrong type.
    """
    parameters, scope = signature(factory)
    for p in parameters:
        value = hyperparameters.get(p.name)
        if (needed := instead_of_text(p)) is not None and has_text(value):
            what = f"expected {needed}, got {value!r}; {ANNOTATE}"
            raise OptimizerError(f"hyper-parameter '{p.name}' of {target}: {what}")
        if value is None or p.annotation is p.empty or given_name(value) is not None:
            continue
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(meant(p.annotation, scope), config=CONFIG)
            adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            # Values annotated with a class, such as `Tensor`, cannot be written in YAML.
            if all(each["type"] != "needs_python_object" for each in error.errors()):
                expected = inspect.formatannotation(p.annotation)
                raise OptimizerError(
                    f"hyper-parameter '{p.name}' of {target}: expected {expected}, got {value!r}"
                ) from None
        except Exception:  # annotations may be anything that a user writes
            continue


def default_of(target: str, argument: str) -> Any:
    """Return the default of a plug-in's argument; None if the argument has no default or does not exist.

    Raises:
        OptimizerError: the plug-in cannot be loaded, or its signature cannot be read.
    """
    found = next((p for p in _parameters(load_factory(target), target) if p.name == argument), None)
    return None if found is None or found.default is found.empty else found.default


def _parameters(factory: Callable[..., Any], target: str) -> list[inspect.Parameter]:
    """Return the parameters of a class or function, in the order of its signature.

    Raises:
        OptimizerError: the signature cannot be read.
    """
    try:
        return list(inspect.signature(factory).parameters.values())
    except (ValueError, TypeError) as error:
        raise OptimizerError(
            f"{target}: the arguments of its constructor cannot be read: {targets.said(error)}"
        ) from error
