"""Continue an optimizer under the settings of another, distinguishing settings from state.

An optimizer may store both anywhere: in parameter groups (`lr` next to schedule-free's `weight_sum`), in attributes, in
a nested optimizer. Names cannot distinguish them, but two new instances of a class differ only in their settings and
values derived from those; everything else is equal, and its later changes are state.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from optbench.optimizers.needs import parameters_of

Path = tuple[tuple[str, str | int], ...]
"""A path in an optimizer: attributes (`.`) and items (`[`), as in `((".", "param_groups"), ("[", 0))`."""

_NUMBERS_AND_TEXT = (bool, int, float, complex, str, type(None), torch.dtype)


def held(optimizer: torch.optim.Optimizer) -> dict[Path, Any]:
    """Return every value in an optimizer that may be a setting, by path: numbers, text, lists of these, scalar tensors.

    Searches parameter groups, mappings with text keys, lists, inner optimizers, and plain objects such as a
    dataclass of settings, but not `state`, parameters, modules and generators.
    """
    found: dict[Path, Any] = {}
    for path, value in _walk(optimizer, (), set()):
        if _is_plain(value):
            found[path] = list(value) if isinstance(value, list) else value
        elif isinstance(value, Tensor) and value.ndim == 0 and not isinstance(value, nn.Parameter):
            found[path] = value.detach().clone()
    return found


def same_kind(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    """Return whether two optimizers, and their inner optimizers, have equal classes, so that states are compatible.

    `sam` with `adam` and `sam` with `sgd` differ.
    """
    return _classes_inside(a) == _classes_inside(b)


def take_settings(
    kept: torch.optim.Optimizer, at_start: Mapping[Path, Any], fresh: torch.optim.Optimizer, named: Set[str]
) -> None:
    """Give `kept` the settings of `fresh`, in place, without changing its state by a single bit.

    kept: an optimizer that has taken steps. at_start: the result of `held(kept)` at its construction. fresh: a new
    optimizer of the same kind. named: the names of the settings that the user gave to either optimizer.

    Values that were equal at construction are unchanged in `kept`, including counters and settings that the optimizer
    itself changes. Values that differed are taken from `fresh`, except those that are not settings by name (neither in
    `named` nor an argument of a constructor) and have changed since: they are state, such as an estimate that starts
    from a setting (Prodigy's `d` from `d0`).
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
    """Yield a value and everything inside it, with paths; an object with several paths is yielded with the first."""
    if _is_plain(value) or isinstance(value, Tensor):
        yield path, value
    elif id(value) not in seen:
        seen.add(id(value))
        yield path, value
        for step, inside in _parts(value):
            yield from _walk(inside, (*path, step), seen)


def _parts(value: Any) -> Iterator[tuple[tuple[str, str | int], Any]]:
    """Yield the items or attributes of a value with their steps of the path, in the same order for every instance."""
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
    """Return whether a value has attributes and a class that is written in Python outside the standard library.

    Standard classes are excluded because a logger, for example, would lead to all other loggers."""
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
    """Return whether two values are equal, including their type: 1, 1.0 and true differ; NaN equals NaN."""
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
        present.detach().copy_(value)  # in place: other parts of the optimizer may hold it, too
    elif kind == ".":
        vars(holder)[last] = value  # also where the class is frozen
    elif isinstance(holder, dict | list):
        holder[last] = value  # type: ignore[index]  # `last` is an index of a list, or a key of a dict
