"""Continuation of an optimizer with the settings of another; settings must be distinguished from state.

An optimizer may store settings and state anywhere: in parameter groups (`lr` next to schedule-free's `weight_sum`), in
attributes or in a nested optimizer. Names alone do not distinguish the two. However, two new instances of a class
differ only in settings and in values derived from settings. A value that is equal in both and changes later is state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from optbench.optimizers.needs import parameters_of

Path = tuple[tuple[str, str | int], ...]
"""A path to a value in an optimizer, by attributes (`.`) and items (`[`), e.g. `((".", "param_groups"), ("[", 0))`."""

_NUMBERS_AND_TEXT = (bool, int, float, complex, str, type(None), torch.dtype)


def held(optimizer: torch.optim.Optimizer) -> dict[Path, Any]:
    """Return every value in an optimizer that may be a setting, by path.

    These are numbers, strings, dtypes, None, lists of these, and scalar tensors. The search includes parameter groups,
    mappings with string keys, lists, inner optimizers and plain objects, e.g. a dataclass of settings. It excludes
    `state`, parameters, modules and generators.
    """
    found: dict[Path, Any] = {}
    for path, value in _walk(optimizer, (), set()):
        if _is_plain(value):
            found[path] = list(value) if isinstance(value, list) else value
        elif isinstance(value, Tensor) and value.ndim == 0 and not isinstance(value, nn.Parameter):
            found[path] = value.detach().clone()
    return found


def same_kind(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    """Return whether two optimizers and their inner optimizers have the same classes, so that states are compatible.

    For example, `sam` around `adam` and `sam` around `sgd` are not of the same kind.
    """
    return _classes_inside(a) == _classes_inside(b)


def take_settings(
    kept: torch.optim.Optimizer, at_start: Mapping[Path, Any], fresh: torch.optim.Optimizer, named: Set[str]
) -> None:
    """Copy the settings of `fresh` to `kept`, in place, without changing a single bit of the state of `kept`.

    Args:
        kept: an optimizer that has taken steps.
        at_start: the result of `held(kept)` right after `kept` was constructed.
        fresh: a new optimizer of the same kind.
        named: names of the settings that the user gave for either optimizer.

    Values that were equal in both optimizers at construction are left unchanged in `kept`. These include counters, and
    settings that the optimizer itself changes. Values that differed are copied from `fresh`, unless they are state. A
    value is state if it has changed since construction and does not have the name of a setting (it is neither in
    `named` nor an argument of a constructor). An example is an estimate that starts from a setting (Prodigy's `d`,
    which starts from `d0`).
    """
    now, new = held(kept), held(fresh)
    names = {*named}.union(*map(parameters_of, _classes_inside(kept).values()))
    for path, value in new.items():
        if path not in at_start or path not in now or _equal(at_start[path], value):
            continue
        name = str(path[-1][1]).lstrip("_")
        if name in names or _equal(now[path], at_start[path]):
            _assign(kept, path, value)


def _walk(value: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    """Yield a value and everything inside it, each with its path.

    Plain values and tensors are yielded with every path that leads to them, other objects only with the first path.
    """
    if _is_plain(value) or isinstance(value, Tensor):
        yield path, value
    elif id(value) not in seen:
        seen.add(id(value))
        yield path, value
        for step, inside in _parts(value):
            yield from _walk(inside, (*path, step), seen)


def _parts(value: Any) -> Iterator[tuple[tuple[str, str | int], Any]]:
    """Yield a value's items or attributes, each with its step in the path, in the same order for every instance."""
    if isinstance(value, dict):
        keys = sorted(key for key in value if isinstance(key, str) and key != "params")
        yield from ((("[", key), value[key]) for key in keys)
    elif isinstance(value, list | tuple):
        yield from ((("[", i), item) for i, item in enumerate(value))
    elif isinstance(value, torch.optim.Optimizer):
        yield from (((".", name), item) for name, item in _fields(value) if name != "state")
    elif not isinstance(value, type | nn.Module | torch.Generator) and _is_plain_object(value):
        yield from (((".", name), item) for name, item in _fields(value))


def _fields(value: Any) -> list[tuple[str, Any]]:
    return sorted(vars(value).items(), key=lambda field: field[0])


def _is_plain_object(value: Any) -> bool:
    """Return whether a value has attributes and its class is written in Python, outside the standard library.

    Standard classes are excluded because a logger, for example, refers to all other loggers.
    """
    kind = type(value)
    in_python = bool(kind.__flags__ & (1 << 9))  # Py_TPFLAGS_HEAPTYPE
    return in_python and hasattr(value, "__dict__") and kind.__module__.partition(".")[0] not in sys.stdlib_module_names


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, _NUMBERS_AND_TEXT) for item in value)
    return isinstance(value, _NUMBERS_AND_TEXT)


def _classes_inside(optimizer: torch.optim.Optimizer) -> dict[Path, type]:
    """Return the classes of an optimizer and its inner optimizers, by path."""
    inside = _walk(optimizer, (), set())
    return {path: type(value) for path, value in inside if isinstance(value, torch.optim.Optimizer)}


def _equal(a: Any, b: Any) -> bool:
    """Return whether two values have equal types and values: 1, 1.0 and True differ, and NaN equals NaN."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return both and a.dtype == b.dtype and torch.equal(a, b.to(a.device))
    return repr(a) == repr(b) and type(a) is type(b)


def _assign(optimizer: torch.optim.Optimizer, path: Path, value: Any) -> None:
    *way, (kind, last) = path
    holder: Any = optimizer
    for step, key in way:
        holder = holder[key] if step == "[" else vars(holder)[key]
    present = holder[last] if kind == "[" else vars(holder)[last]
    if isinstance(present, Tensor) and isinstance(value, Tensor) and present.dtype == value.dtype:
        present.detach().copy_(value)  # in place: other parts of the optimizer may share the tensor
    elif kind == ".":
        vars(holder)[last] = value  # works for frozen classes, too
    elif isinstance(holder, dict | list):
        holder[last] = value  # type: ignore[index]  # `last` is a list index or a dict key
