"""What a suite says is searched of an optimizer: `tune.optimizers`, and the `space` that tuning writes down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from optbench.errors import OptimizerError
from optbench.suite.document import KeyPath
from optbench.suite.schema import Suite
from optbench.suite.variants import log_grid

Stated: TypeAlias = tuple[KeyPath, Any]
FORMS = "a list of values, {log: [low, high], points: n} or {of: optimizer.key, times: x}"
_NOT_NESTED = {"log", "points", "of", "times"}


def space_problems(suite: Suite) -> Iterator[tuple[KeyPath, str]]:
    """Where something is not of one of the forms, by path into the suite, and what is wrong with it."""
    for path, value in _stated(suite):
        problem = _problem(str(path[-1]), value)
        if problem is not None:
            yield path, problem


def _stated(suite: Suite) -> Iterator[Stated]:
    if suite.tune is not None:
        for optimizer, space in (suite.tune.optimizers or {}).items():
            yield from _leaves(space, ("tune", "optimizers", optimizer))
        for experiment, changes in suite.tune.experiments.items():
            for optimizer, space in changes.optimizers.items():
                yield from _leaves(space, ("tune", "experiments", experiment, "optimizers", optimizer))
    for name, settings in suite.experiments.items():
        for optimizer, cost in (settings.tuning or {}).items():
            for key, value in (cost.space or {}).items():
                yield ("experiments", name, "tuning", optimizer, "space", key), value


def _leaves(space: Mapping[str, Any], path: KeyPath) -> Iterator[Stated]:
    for key, value in space.items():
        # What is searched of an optimizer inside another stands in a mapping of its own.
        if isinstance(value, Mapping) and value and not _NOT_NESTED & value.keys():
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _problem(key: str, value: Any) -> str | None:
    if isinstance(value, list):
        return None
    if isinstance(value, Mapping) and "log" in value:
        try:
            log_grid(key, value)
        except OptimizerError as error:
            return str(error)
        return None
    if isinstance(value, Mapping) and isinstance(value.get("of"), str) and value.keys() <= {"of", "times"}:
        times = value.get("times", 1)
        good = isinstance(times, int | float) and not isinstance(times, bool) and times > 0
        return None if good else f"'times' needs a positive number; {times!r} came"
    return f"needs {FORMS}; {value!r} came"
