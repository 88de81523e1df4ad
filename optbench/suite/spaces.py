"""Checks of the search spaces that a suite records under `tuning`, to be shown in reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
