"""Suites and optimizers passed from Python: names, paths and mappings, with objects allowed instead of targets."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from optbench.errors import OptbenchError, UsageError
from optbench.selection import Choice, parse_optimizers, parse_seeds
from optbench.suite import Suite, dump_suite, resolve_suite_path
from optbench.suite.extends import KEY as EXTENDS
from optbench.targets import Objects

GivenSuite: TypeAlias = str | Path | Mapping[str, Any] | Suite
GivenOptimizers: TypeAlias = Sequence[str] | Mapping[str, Any]

_ARGUMENTS = {"experiment": "experiments", "optimizer": "optimizers", "model": "models", "force": "force=True"}
"""The Python argument for each command-line option that is written differently in Python."""


@contextlib.contextmanager
def suite_file(suite: GivenSuite, objects: Objects) -> Iterator[Path]:
    """Yield the path of a suite's file; for a mapping or a `Suite`, this is a temporary file.

    Raises:
        OptbenchError: there is no such suite, or the mapping contains a value that cannot be written to a file. An
            error raised in the block is re-raised; its message then names `suite` instead of the temporary file,
            and arguments instead of command-line options.
    """
    own: Path | None = None
    try:
        if isinstance(suite, str | Path):
            yield resolve_suite_path(str(suite))
            return
        with tempfile.TemporaryDirectory(prefix="optbench-") as folder:
            own = Path(folder) / "suite.yaml"
            own.write_text(_text(suite, objects), encoding="utf-8")
            yield own
    except OptbenchError as error:
        place = rf"{re.escape(str(own))}(:\d+:\d+)?" if own is not None else "$^"
        lines = (re.sub(place, "suite", str(line)) for line in error.args)
        raise type(error)(*(re.sub(r"--([a-z-]+)", _argument, line) for line in lines)) from error.__cause__


def _argument(option: re.Match[str]) -> str:
    return _ARGUMENTS.get(option[1], option[1].replace("-", "_"))


def _text(suite: Mapping[str, Any] | Suite, objects: Objects) -> str:
    if isinstance(suite, Suite):
        return dump_suite(suite)
    if not isinstance(suite, Mapping):
        raise UsageError(f"suite: expected a name, a path, a mapping or a suite, got {type(suite).__name__}")
    plain = written(suite, objects, "suite")
    if isinstance(base := plain.get(EXTENDS), str):
        plain[EXTENDS] = str(resolve_suite_path(base).absolute())
    return json.dumps(plain, ensure_ascii=False)  # JSON is valid YAML


def written(value: Any, objects: Objects, place: str) -> Any:
    """Return a value as written in a suite file, with classes and functions replaced by targets.

    Raises:
        OptbenchError: the value cannot be written, or contains an object that cannot be sent to worker processes.
    """
    if isinstance(value, Mapping):
        return {str(key): written(item, objects, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [written(item, objects, f"{place}.{i}") for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return objects.target(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(f"{place}: expected a number, text, list, mapping, class or function, got {type(value).__name__}")


def choice_of(
    seeds: int | Sequence[int] | None,
    optimizers: GivenOptimizers | None,
    experiments: Sequence[str],
    models: Sequence[str],
    settings: Mapping[str, Any],
    objects: Objects,
    *,
    only_known: bool = False,
) -> Choice:
    """Return a `Choice` for the arguments of `run` that select from a suite or add to it.

    optimizers: names of optimizers to select; or a mapping, which adds optimizers: name -> class, function, target, or
        a mapping with one of these as `target` and hyper-parameters next to it. The value None selects an optimizer of
        the suite.
    only_known: whether the suite already contains the added optimizers, as it does when a run is resumed.

    Raises:
        OptbenchError: a name, a seed or a setting is not valid.
    """
    added: dict[str, Any] = written(optimizers, objects, "optimizers") if isinstance(optimizers, Mapping) else {}
    texts = [name for name in _names(optimizers or ()) if added.get(name) is None]
    overrides: dict[str, Any] = written(settings, objects, "set")
    for name, given in ({} if only_known else added).items():
        target, own = (given.get("target"), given) if isinstance(given, dict) else (given, {})
        if given is not None and not isinstance(target, str):
            raise UsageError(
                f"optimizers.{name}: expected a class, a function, a target, or a mapping with 'target', got {given!r}"
            )
        texts += [f"{name}={target}"] if given is not None else []
        overrides |= {f"optimizers.{name}.{key}": value for key, value in own.items() if key != "target"}
    names, additions = parse_optimizers(texts)
    return Choice(
        seeds=seeds_of(seeds),
        experiments=_names(experiments),
        models=_names(models),
        optimizers=names,
        additions=additions,
        settings=tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()),
    )


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def seeds_of(seeds: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the seeds, given as a number of seeds or as a list; empty for None.

    Raises:
        UsageError: the argument is not a valid number or list of seeds.
    """
    if seeds is None:
        return ()
    listed = not isinstance(seeds, int | np.integer)
    return parse_seeds(",".join(map(str, seeds)) + "," if listed else str(seeds))  # type: ignore[arg-type]
