"""Error messages for misspelt arguments of the Python interface, with the nearest valid name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from optbench.errors import unknown

P = ParamSpec("P")
R = TypeVar("R")


def suggesting(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its TypeError for an unknown argument names the nearest valid one."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if wrong := [name for name in kwargs if name not in names]:
            raise TypeError(f"optbench.{function.__name__}(): {unknown('argument', wrong[0], names)}")
        return function(*args, **kwargs)

    return checked
