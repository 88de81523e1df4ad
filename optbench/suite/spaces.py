"""Search spaces: the forms that those recorded under `tuning` must have, and the optimizers that a space follows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from optbench.errors import OptimizerError
from optbench.suite.document import KeyPath
from optbench.suite.schema import Suite
from optbench.suite.variants import log_grid

FORMS = "a list of values, {log: [low, high], points: n} or {of: optimizer.key, times: x}"


def space_problems(suite: Suite) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path in the suite, and a message, for each entry of a space that has none of the valid forms."""
    for name, settings in suite.experiments.items():
        for optimizer, cost in (settings.tuning or {}).items():
            for key, value in (cost.space or {}).items():
                if problem := _problem(key, value):
                    yield ("experiments", name, "tuning", optimizer, "space", key), problem


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
        return None if good else f"'times': expected a positive number, got {times!r}"
    return f"expected {FORMS}, got {value!r}"


def followed(space: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path and the value of each `of` in a space, as in `{lr: {of: sgd.lr}}`."""
    for key, value in space.items() if isinstance(space, Mapping) else ():
        if key == "of" and isinstance(value, str):
            yield (key,), value
        yield from (((key, *path), of) for path, of in followed(value))


def leader(of: str, names: Collection[str]) -> str | None:
    """Return the optimizer that `of: OPTIMIZER.KEY` names: the longest of these names, which may contain dots."""
    parts = of.split(".")
    return next((name for end in range(len(parts) - 1, 0, -1) if (name := ".".join(parts[:end])) in names), None)
