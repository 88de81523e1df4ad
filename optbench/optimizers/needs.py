"""Requirements of a user's optimizer: inferred from its class, or declared next to its hyper-parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from optbench.errors import OptimizerError, nearest
from optbench.optimizers.spec import GIVEN, GIVEN_VALUES, NEEDS, Need

if TYPE_CHECKING:
    import torch

PARAMETERS = ("params", "parameters")
"""What the argument for the parameters is called where it is not the first, as in `(model, params)`."""
_GIVEN_KEY = "given"


def needs_of(cls: type[torch.optim.Optimizer], hyperparameters: Mapping[str, Any]) -> frozenset[Need]:
    """The needs of a user's optimizer: declared, or found in the signatures of its methods.

    A `step` with an argument `closure` or `loss` that has no default needs a closure; `train` and `eval` are modes;
    `generator`, `model`, `named_parameters` and `total_steps` are arguments of the constructor.
    """
    words = declared_needs(hyperparameters)
    # What a user's optimizer draws is unknown.
    needs: set[Need] = {"random", *words}
    if required_arguments(cls.step) & {"closure", "loss"}:
        needs.add("closure")
    if all(_callable_without_arguments(cls, name) for name in ("train", "eval")):
        needs.add("modes")
    if "no-modes" in words:
        needs -= {"modes", "no-modes"}
    needs |= set(GIVEN) & inspect.signature(cls).parameters.keys()
    needs |= {name for value in hyperparameters.values() if (name := given_name(value)) is not None}
    return frozenset(needs)


def declared_needs(hyperparameters: Mapping[str, Any]) -> frozenset[Need]:
    """The words of `needs: ...`."""
    words = str(hyperparameters.get("needs") or "").split()
    return frozenset(need for need in NEEDS if need in words)


def given_name(value: Any) -> Need | None:
    """`total_steps` of `{given: total_steps}`: a value that only the trial knows; None for any other value."""
    if isinstance(value, Mapping) and set(value) == {_GIVEN_KEY}:
        return next((name for name in GIVEN_VALUES if name == value[_GIVEN_KEY]), None)
    return None


def check_given(name: str, value: Any) -> None:
    """Check a value of the form `{given: ...}`.

    Raises:
        OptimizerError: it names nothing that a trial has.
    """
    if isinstance(value, Mapping) and _GIVEN_KEY in value and given_name(value) is None:
        word = value[_GIVEN_KEY]
        guess = nearest(word, GIVEN_VALUES) if isinstance(word, str) else None
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise OptimizerError(
            f"hyper-parameter '{name}': expected {{given: {' | '.join(GIVEN_VALUES)}}}, got {dict(value)!r}{hint}"
        )


def required_arguments(function: Callable[..., Any]) -> frozenset[str]:
    """The arguments without a default, `self` aside; empty where the signature cannot be read."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(
        name
        for name, parameter in _parameters(function).items()
        if parameter.default is parameter.empty and parameter.kind in kinds and name != "self"
    )


def takes_loss_by_name(step: Callable[..., Any]) -> bool:
    """Whether `step` is to be given the loss by name: `step(loss)`, or `step(closure, loss)` without a default."""
    parameters = _parameters(step)
    return "loss" in parameters and ("loss" in required_arguments(step) or "closure" not in parameters)


def takes_closure(step: Callable[..., Any]) -> Literal["first", "by name", "not"]:
    """How `step` takes a closure: as its first argument, whatever that is called; by name; or not, as `step(loss)`."""
    parameters = _parameters(step)
    first = next((p for name, p in parameters.items() if name != "self"), None)
    if first is None:
        return "first"
    if first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        by_name = "closure" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return "by name" if by_name else "not"
    return "not" if first.name == "loss" and "closure" not in parameters else "first"


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):  # compiled, say: `needs` tells
        return {}


def _callable_without_arguments(cls: type, name: str) -> bool:
    method = inspect.getattr_static(cls, name, None)
    if isinstance(method, property) or not callable(getattr(cls, name, None)):
        return False
    return not required_arguments(getattr(cls, name))
