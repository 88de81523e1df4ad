"""Inspection of objects: whether other processes can import them, and their source."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import linecache
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from optbench.targets.executing import PACKAGE


def is_importable(value: Any) -> bool:
    """Return whether other processes can import an object by its name."""
    name, module = getattr(value, "__name__", None), sys.modules.get(getattr(value, "__module__", None) or "")
    return module is not None and vars(module).get(str(name)) is value and is_found(module)


def is_found(module: types.ModuleType) -> bool:
    """Return whether other processes, which have only the standard import finders, can find a module."""
    top = module.__name__.partition(".")[0]
    if top == "__main__" or top.startswith(PACKAGE) or module.__spec__ is None:
        return False
    return any(finder.find_spec(top, None) for finder in sys.meta_path)


def source_texts(value: Any, seen: set[int] | None = None) -> Iterator[str | None]:
    """Yield the source of an object and of everything that is pickled with it; None stands for an unknown source.

    Values captured by functions are yielded as comments.
    """
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, functools.partial):
        yield f"# partial {_shown(value.args)} {_shown(value.keywords)}"
        inner = [value.func]
    elif isinstance(value, type | types.FunctionType):
        yield _source(value)
        inner = list(value.__bases__) if isinstance(value, type) else []
        captured = {name: one for function in _functions(value) for name, one in _captured(function)}
        for name, one in sorted(captured.items()):
            if isinstance(one, type | types.FunctionType | functools.partial):
                inner.append(one)
            elif not isinstance(one, types.ModuleType):
                yield f"# {name} = {_shown(one)}"
    else:
        yield None
    for one in inner:
        if not is_importable(one):
            yield from source_texts(one, seen)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    for one in vars(value).values() if isinstance(value, type) else [value]:
        own = inspect.unwrap(getattr(one, "fget", None) or getattr(one, "__func__", one))
        if isinstance(own, types.FunctionType):
            yield own


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the names and values that a function captures: the globals that it uses, its closure, and its defaults."""
    codes = [function.__code__]
    for code in codes:  # the list grows during the loop
        codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    names = {name for code in codes for name in code.co_names}
    yield from ((name, function.__globals__[name]) for name in names & function.__globals__.keys())
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield name, cell.cell_contents
    if function.__defaults__:
        yield f"defaults of {function.__name__}", function.__defaults__


def _shown(value: Any) -> str:
    """Return numbers, strings and containers as text; for other values, whose `repr` may vary, return only the type."""
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_shown, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_shown(key)}: {_shown(one)}' for key, one in value.items())}}}"
    return repr(value) if isinstance(value, bool | int | float | str | None) else f"<{type(value).__qualname__}>"


def _source(value: type | types.FunctionType) -> str | None:
    with contextlib.suppress(OSError, TypeError):
        return textwrap.dedent(inspect.getsource(value)).rstrip()
    # Before Python 3.13, a class defined in a notebook has no file, but its methods do.
    for function in _functions(value):
        text = "".join(linecache.getlines(function.__code__.co_filename))
        with contextlib.suppress(SyntaxError):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and node.name == value.__name__:
                    return textwrap.dedent(ast.get_source_segment(text, node) or "").rstrip() or None
    return None
