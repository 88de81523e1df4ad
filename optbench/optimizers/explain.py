"""Explanations of an optimizer's errors: where the error was raised, and which declaration may be missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from optbench.errors import spoken
from optbench.optimizers.needs import declared_needs
from optbench.optimizers.registry import user_targets
from optbench.targets.raised import raised_at

LONGEST = 300
"""Maximum length of a message in characters; longer messages usually contain printed data, such as a tensor."""
_MISSING: tuple[tuple[str, str, str], ...] = (
    (r"closure", "closure", "`needs: closure`"),
    (r"does not require grad|grad_fn|create_graph", "create_graph", "`needs: create_graph` or `needs: loss`"),
    (r"second time|'NoneType' object has no attribute 'backward'", "loss", "`needs: loss`"),
    (r"train(ing)? mode|\.train\(\)|\.eval\(\)|train_mode", "modes", "`needs: modes`"),
    (r"named_parameters|param_names", "named_parameters", "an argument `{given: named_parameters}`"),
    (r"matri|\b2-?[dD]\b|\bndim\b|\.dim\(\)|dimension|\.T\b|must be 2", "only_matrices", "`only_matrices: true`"),
)
"""Patterns of error messages, each with the need that is probably missing and its declaration."""
_COMMON = "`needs: closure`, `needs: create_graph`, `only_matrices: true`"
_OF_PYTHON = (TypeError, AttributeError, LookupError, NameError, NotImplementedError, AssertionError)
_OF_PYTORCH = r"does not require grad and does not have a grad_fn|backward through the graph a second time"


def explained(error: BaseException, target: str, hyperparameters: Mapping[str, Any]) -> tuple[str, str]:
    """Return the type and the message of an exception raised by an optimizer.

    The message is unchanged if no part of the optimizer is user code, or if the message seems to be written for the
    user. It is shortened and extended if it is empty, is very long, contains a printed tensor, or comes from Python or
    PyTorch and suggests a bug. The extension states where the error was raised and, if the error
    suggests any, which declarations may be missing.
    """
    kind, message = type(error).__name__, spoken(error)
    if not user_targets(target, hyperparameters):
        return kind, message
    says_nothing = not message.strip() or len(message) > LONGEST or "tensor(" in message
    if not (says_nothing or isinstance(error, _OF_PYTHON) or re.search(_OF_PYTORCH, message)):
        return kind, message
    place = raised_at(error)
    message = f"{_shortened(message)}, raised {place}" if place else _shortened(message)
    missing = _missing(f"{kind} {message}", hyperparameters) or (_COMMON if says_nothing else None)
    return kind, f"{message}; commonly missing: {missing}" if missing else message


def in_words(error: BaseException, target: str, hyperparameters: Mapping[str, Any]) -> str:
    """Return the result of `explained` as a single line."""
    return " ".join(": ".join(explained(error, target, hyperparameters)).split())


def _shortened(message: str) -> str:
    """Return a message on one line, cut off at a printed tensor and after `LONGEST` characters."""
    said = " ".join(message.split())
    if "tensor(" in said:
        said = said[: said.index("tensor(")] + "a tensor"
    if not said:
        return "no message"
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def _missing(known: str, hyperparameters: Mapping[str, Any]) -> str | None:
    """Return the missing declaration that an error suggests; None if it suggests none."""
    declared = {*declared_needs(hyperparameters), *(name for name, value in hyperparameters.items() if value is True)}
    found = [how for pattern, need, how in _MISSING if need not in declared and re.search(pattern, known)]
    return found[0] if found else None
