"""From an optimizer's target to its class: imports the code that the user named, and only then."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from optbench.errors import OptimizerError, nearest, unknown
from optbench.optimizers.registry import base_settings, check_settings, find, is_plugin
from optbench.optimizers.spec import DECLARATIONS, FALLBACK, GIVEN

EXTRAS = {"pytorch_optimizer": "optimizers"}
"""Packages that the registry knows of but a plain install lacks, and the extra that brings them."""


def load_class(target: str) -> type[torch.optim.Optimizer]:
    """The optimizer class behind a registered name, `module:Class` or `./file.py:Class`.

    Raises:
        OptimizerError: the module cannot be imported (when an extra is missing, it says which), has no such class, or
            the class is no `torch.optim.Optimizer`.
    """
    where, _, attribute = find(target).target.rpartition(":")
    if not where or not attribute:
        raise OptimizerError(f"{target}: needs module:Class or ./file.py:Class")
    module = _load_file(Path(where), target) if where.endswith(".py") else _load_module(where, target)
    names = getattr(module, "__dict__", {})
    with _importing(where, target):  # a module may import what it names when it is asked for it
        found = getattr(module, attribute, None)
    if found is None:
        classes = [name for name, value in names.items() if isinstance(name, str) and inspect.isclass(value)]
        guess = nearest(attribute, classes)
        raise OptimizerError(
            f"{target}: {where} has no '{attribute}'" + (f"; did you mean '{guess}'?" if guess else "")
        )
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise OptimizerError(f"{target}: needs a subclass of torch.optim.Optimizer; '{attribute}' is {_kind(found)}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise OptimizerError(f"{target}: '{attribute}' is abstract: it lacks {', '.join(missing)}")
    return found


def check_arguments(target: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check a plug-in's hyper-parameters against its constructor's signature.

    Raises:
        OptimizerError: the class cannot be loaded, does not take one of the names, or needs one that is not given.
    """
    cls = load_class(target)
    if not is_plugin(target):
        # The registry has checked these; what stands inside them may be a user's.
        for name, hyper in find(target).hyperparameters.items():
            if hyper.kind == "optimizer":
                check_arguments(*base_settings(target, hyperparameters[name]))
        return
    if hyperparameters.get("only_matrices") is True:
        rest = {name: value for name, value in hyperparameters.items() if name.startswith(FALLBACK)}
        check_settings(find(target).fallback, {name.removeprefix(FALLBACK): value for name, value in rest.items()})
        hyperparameters = {name: value for name, value in hyperparameters.items() if name not in rest}
    parameters = _parameters(cls, target)[1:]  # the first one is `params`, or `model`
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name in hyperparameters:
        if name not in names and not takes_any and name not in DECLARATIONS:
            raise OptimizerError(unknown(f"hyper-parameter of {target}", name, names))
    given = {*hyperparameters, *GIVEN}  # the trial's own, where they are asked for
    missing = [name for name, p in names.items() if p.default is p.empty and name not in given]
    if missing:
        raise OptimizerError(f"{target} needs a value for {', '.join(missing)}, as in {missing[0]}: ...")


def default_of(target: str, argument: str) -> Any:
    """The default that a plug-in's constructor has for an argument; None where it has none.

    Raises:
        OptimizerError: the class cannot be loaded, or its constructor not be read.
    """
    found = next((p for p in _parameters(load_class(target), target) if p.name == argument), None)
    return None if found is None or found.default is found.empty else found.default


def _parameters(cls: type[torch.optim.Optimizer], target: str) -> list[inspect.Parameter]:
    """The parameters of the constructor.

    Raises:
        OptimizerError: it cannot be read.
    """
    try:
        return list(inspect.signature(cls).parameters.values())
    except (ValueError, TypeError) as error:
        raise OptimizerError(f"{target}: the arguments of its constructor cannot be read: {_said(error)}") from error


def _load_module(name: str, target: str) -> Any:
    try:
        with _importing(name, target):
            return importlib.import_module(name)
    except OptimizerError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
            extra = EXTRAS[cause.name]
            needed = f"optimizer '{target}' needs the extra '{extra}': pip install 'optbench[{extra}]'"
            raise OptimizerError(needed) from cause
        raise


def _load_file(path: Path, target: str) -> Any:
    try:
        state = path.stat()
    except (OSError, ValueError):  # also a name too long for the file system, or with a NUL in it
        state = None
    if state is None or not stat.S_ISREG(state.st_mode):
        raise OptimizerError(f"{target}: there is no file {path}")
    with _importing(str(path), target):
        return _execute_file(path.resolve(), state.st_mtime_ns, state.st_size)


@contextlib.contextmanager
def _importing(what: str, target: str) -> Iterator[None]:
    """A user's code may raise anything while it is imported, leave the program, or print what is no result."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        raise OptimizerError(f"{target}: cannot import {what}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """`ValueError: the first line of what it says`; an exception of the user's may not even know what to say."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        lines = []
    if isinstance(error, SystemExit):
        return f"it ends the program with exit({lines[0] if lines else ''})"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@functools.lru_cache(maxsize=64)
def _execute_file(path: Path, modified: int, size: int) -> Any:
    """The module of a file, executed once for each state of the file: it may be slow, and may count its own loading."""
    place = hashlib.sha256(str(path).encode()).hexdigest()[:8]  # files of one name may lie in several folders
    name = f"optbench_plugin_{path.stem}_{place}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else f"of type {type(value).__name__}"
