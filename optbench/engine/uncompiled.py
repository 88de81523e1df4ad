"""PyTorch's optimizers without `torch._dynamo`, which takes 1.7 s to import, longer than the rest of PyTorch.

Optimizer methods import `torch._dynamo` on first use, to exclude themselves from `torch.compile`. This module defers
the exclusion until other code has imported `torch._dynamo`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

DYNAMO = "torch._dynamo"
_WRAPPER, _GRAD_WRAPPER = "_disable_dynamo.", "_use_grad_for_differentiable."
_KEPT = "__dynamo_disable"
"""The function attribute in which PyTorch stores the replacement used once dynamo is imported."""


def spare_dynamo() -> None:
    """Prevent the optimizers of this process from importing dynamo before other code does.

    Call this before any optimizer is constructed. It has no effect on versions of PyTorch that work differently.
    """
    for method, plain in _undecided():
        setattr(plain, _KEPT, _until_imported(plain, method))
    for kind in vars(torch.optim).values():
        step = vars(kind).get("step") if isinstance(kind, type) else None
        if _code_name(step).startswith(_GRAD_WRAPPER):
            kind.step = _step(step)


@contextlib.contextmanager
def made_without_dynamo() -> Iterator[None]:
    """Prevent optimizers constructed in the block from importing dynamo, with no lasting effect on a user's process."""
    undecided = _undecided()
    for method, plain in undecided:
        setattr(plain, _KEPT, _until_imported(plain, method))
    try:
        yield
    finally:
        for _, plain in undecided:
            if hasattr(plain, _KEPT):
                delattr(plain, _KEPT)


def _undecided() -> list[tuple[Any, Any]]:
    """Return the methods of `torch.optim.Optimizer` that import dynamo on first use, with their wrapped functions."""
    if DYNAMO in sys.modules:
        return []
    methods: list[Any] = [m for m in vars(torch.optim.Optimizer).values() if _code_name(m).startswith(_WRAPPER)]
    return [(method, method.__wrapped__) for method in methods if not hasattr(method.__wrapped__, _KEPT)]


def _code_name(function: object) -> str:
    return str(getattr(getattr(function, "__code__", None), "co_qualname", ""))


def _until_imported(plain: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if DYNAMO in sys.modules:
            if getattr(plain, _KEPT, None) is call:
                delattr(plain, _KEPT)  # so that the method uses dynamo from now on
            return method(*args, **kwargs)
        return plain(*args, **kwargs)

    return call


def _step(step: Any) -> Callable[..., Any]:
    @functools.wraps(step)
    def wrapped(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if DYNAMO in sys.modules:
            return step(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step.__wrapped__(self, *args, **kwargs)

    return wrapped
