"""Detection of state that a user's optimizers keep outside of instances, i.e. on classes or in modules.

All trials in a process share this state. Sharing cannot be prevented, only detected.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optbench.engine.contents import digest
from optbench.targets import PACKAGE

_LIBRARIES = ("torch", "builtins", "abc", "typing", "optbench")
_STATEFUL = (int, float, np.ndarray, Tensor, list, dict, set, collections.deque, torch.Generator)


class OutsideState:
    """Digests of the numbers, tensors and containers that a user's code keeps outside of instances, by name."""

    def __init__(self, code: Iterable[Any]) -> None:
        """code: the classes and functions to read; base classes and module variables are read with them."""
        self._code = list(code)
        self._digests = self._now()

    def _now(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for place, names in _places(self._code):
            for name, value in _values(names):
                # Include objects of classes defined in the same place, since one may hold the state of all instances.
                own = type(value).__module__ in (names.get("__name__"), names.get("__module__"))
                if isinstance(value, _STATEFUL) or own:
                    # Some values hold code, which is not state, and reading a user's object may raise an exception.
                    with contextlib.suppress(Exception):
                        found[f"{place}.{name}"] = digest(value)
        return found

    def changed(self) -> str | None:
        """Return the name of a value that is new or has changed; None if there is none."""
        return next((name for name, digest in self._now().items() if self._digests.get(name) != digest), None)


def _places(code: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parts = dict.fromkeys(part for each in code for part in (each.__mro__ if isinstance(each, type) else [each]))
    users = [part for part in parts if part.__module__.partition(".")[0] not in _LIBRARIES]
    yield from ((part.__name__, vars(part)) for part in users if hasattr(part, "__name__"))
    modules: dict[str, Any] = {}
    for part in users:
        package, dot, _ = part.__module__.partition(".")
        of_file = dot and package.startswith(PACKAGE)
        for name, module in list(sys.modules.items()):
            if name == part.__module__ or (of_file and name.startswith(package + dot)):
                modules[name.removeprefix(package + dot) if of_file else name] = module
    yield from ((name, vars(module)) for name, module in modules.items())


def _values(names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each variable, and of each default argument, since calls share default arguments."""
    for name, value in list(names.items()):
        if isinstance(value, types.FunctionType):
            wrapped = vars(value).get("__wrapped__")  # PyTorch wraps `step`
            own = wrapped if isinstance(wrapped, types.FunctionType) else value
            defaults = [*(own.__defaults__ or ()), *(own.__kwdefaults__ or {}).values()]
            yield from ((f"{name}, default {i}", default) for i, default in enumerate(defaults, start=1))
        elif not name.startswith("__"):
            yield name, value
