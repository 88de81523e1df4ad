"""The needs of a user's optimizer, inferred from its signatures or declared next to its hyper-parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set
from typing import Any, Literal

from optbench.errors import OptimizerError, hint
from optbench.optimizers.spec import GIVEN, GIVEN_VALUES, NEEDS, Need

MODELS = ("model", "module", "net", "network")
"""If the first argument has one of these names, it receives the model."""
PARAMETERS = ("params", "parameters")
"""Names of the argument that receives the parameters if the first argument does not, as in `(model, params)`."""
_GIVEN_KEY = "given"


def needs_of(factory: Callable[..., Any], hyperparameters: Mapping[str, Any]) -> frozenset[Need]:
    """Return the needs of a user's optimizer: those declared, and those inferred from signatures.

    An argument `generator`, `model`, `named_parameters` or `total_steps` of a class or function is a need. The needs of
    methods are included only for a class, because the result of a function is unknown until the function is called.
    """
    # a user's optimizer may draw random numbers
    needs: set[Need] = {"random", *declared_needs(hyperparameters), *(set(GIVEN) & parameters_of(factory).keys())}
    needs |= {name for value in hyperparameters.values() if (name := given_name(value)) is not None}
    if (first := first_given(factory)) is not None:
        needs.add(first)
    return needs_of_methods(factory if inspect.isclass(factory) else None, hyperparameters, needs)


def needs_of_methods(
    optimizer: object, hyperparameters: Mapping[str, Any], needs: Set[Need] = frozenset()
) -> frozenset[Need]:
    """Return `needs` plus the needs that the methods of an optimizer or its class imply.

    - `step` with an argument `closure` or `loss` without a default: `closure`
    - `train` and `eval`: `modes`, unless `no-modes` is declared
    - `around_forward`: `around_forward`
    """
    found = {*needs}
    if required_arguments(getattr(optimizer, "step", None)) & {"closure", "loss"}:
        found.add("closure")
    if all(_callable_without_arguments(optimizer, name) for name in ("train", "eval")):
        found.add("modes")
    if _callable_without_arguments(optimizer, "around_forward"):
        found.add("around_forward")
    if "no-modes" in declared_needs(hyperparameters):
        found -= {"modes", "no-modes"}
    return frozenset(found - {"no-schedule"})  # not needed by a step


def first_given(factory: Callable[..., Any]) -> Need | None:
    """Return the need that is passed as the first argument; None if the first argument receives the parameters."""
    first = next(iter(parameters_of(factory).values()), None)
    if first is None:
        return None
    if first.name in GIVEN:
        return next(name for name in GIVEN if name == first.name)
    of_module = str(getattr(first.annotation, "__name__", first.annotation)).rpartition(".")[2] == "Module"
    return "model" if first.name in MODELS or of_module else None


def declared_needs(hyperparameters: Mapping[str, Any]) -> frozenset[Need]:
    """Return the needs listed in the declaration `needs: ...`."""
    words = str(hyperparameters.get("needs") or "").split()
    return frozenset(need for need in NEEDS if need in words)


def given_name(value: Any) -> Need | None:
    """Return `name` if a value has the form `{given: name}`, where `name` is a value of the trial; otherwise None."""
    if isinstance(value, Mapping) and set(value) == {_GIVEN_KEY}:
        return next((name for name in GIVEN_VALUES if name == value[_GIVEN_KEY]), None)
    return None


def check_given(name: str, value: Any) -> None:
    """Check that a value of the form `{given: ...}` names a value of a trial.

    Raises:
        OptimizerError: the name is unknown.
    """
    if isinstance(value, Mapping) and _GIVEN_KEY in value and given_name(value) is None:
        word = value[_GIVEN_KEY]
        needed = f"{{given: {' | '.join(GIVEN_VALUES)}}}"
        raise OptimizerError(
            f"hyper-parameter '{name}': expected {needed}, got {dict(value)!r}{hint(word, GIVEN_VALUES)}"
        )


def required_arguments(function: Callable[..., Any] | None) -> frozenset[str]:
    """Return the names of the arguments without a default, except `self`; empty if the signature cannot be read."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(
        name
        for name, parameter in parameters_of(function).items()
        if parameter.default is parameter.empty and parameter.kind in kinds and name != "self"
    )


def takes_loss_by_name(step: Callable[..., Any]) -> bool:
    """Return whether `step` takes the loss by name: `step(loss)`, or `step(closure, loss)` with `loss` required."""
    parameters = parameters_of(step)
    return "loss" in parameters and ("loss" in required_arguments(step) or "closure" not in parameters)


def takes_closure(step: Callable[..., Any]) -> Literal["first", "by name", "not"]:
    """Return how `step` takes a closure: as its first argument, by name, or not at all, as in `step(loss)`."""
    parameters = parameters_of(step)
    first = next((p for name, p in parameters.items() if name != "self"), None)
    if first is None:
        return "first"
    if first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        by_name = "closure" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return "by name" if by_name else "not"
    return "not" if first.name == "loss" and "closure" not in parameters else "first"


def parameters_of(function: Callable[..., Any] | None) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function or constructor by name; empty if its signature cannot be read."""
    try:
        return inspect.signature(function).parameters if function is not None else {}
    except (ValueError, TypeError):  # e.g. compiled
        return {}


def _callable_without_arguments(optimizer: object, name: str) -> bool:
    if isinstance(inspect.getattr_static(optimizer, name, None), property):
        return False
    method = getattr(optimizer, name, None)
    return callable(method) and not required_arguments(method)
