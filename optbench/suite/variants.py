"""The variants of one optimizer: every combination of its swept hyper-parameters."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from optbench.errors import OptimizerError
from optbench.suite.schema import LogGrid

MAX_VARIANTS = 10_000

# Hyper-parameters whose one value is a sequence of numbers, in torch.optim and in pytorch-optimizer.
SEQUENCES = frozenset(
    {"betas", "adamw_betas", "betas_1d", "etas", "nus", "step_sizes", "ns_coefficients", "ns_coeffs"},
)

# Text that stands bare in a variant's name; anything else is quoted, so that two names differ when their values do.
_BARE = re.compile(r"(?!(?:true|false|null)\Z)[A-Za-z_][A-Za-z0-9_.:/-]*", re.ASCII)


@dataclass(frozen=True)
class Variant:
    """One setting of an optimizer's hyper-parameters."""

    name: str
    """`default` when nothing is swept, else the swept keys: `lr=0.001,momentum=0.9`, `rho=0.05,base.lr=0.1`."""
    hyperparameters: dict[str, Any]


def variants(hyperparameters: Mapping[str, Any]) -> list[Variant]:
    """All combinations of the swept hyper-parameters, the last key varying fastest.

    A list, or `{log: [low, high], points: n}`, is a sweep. Where one value is itself a sequence (`betas`), a list of
    numbers is that value and a list of lists is a sweep. A mapping with a `target` is an optimizer inside a wrapper,
    whose own hyper-parameters may be swept. Any other mapping is a value.

    Raises OptimizerError, which names the key in quotes, for an empty sweep, a value listed twice, a bad grid, or
    more than `MAX_VARIANTS` combinations.
    """
    swept = _swept(hyperparameters)
    if not swept:
        return [Variant("default", dict(hyperparameters))]
    if (count := math.prod(len(sweep) for sweep in swept.values())) > MAX_VARIANTS:
        longest = max(swept, key=lambda path: len(swept[path]))
        raise OptimizerError(f"'{'.'.join(longest)}': the sweeps make {count} variants, more than {MAX_VARIANTS}")
    result = []
    for combination in itertools.product(*swept.values()):
        chosen = dict(zip(swept, combination, strict=True))
        name = ",".join(f"{'.'.join(path)}={value_name(value)}" for path, value in chosen.items())
        result.append(Variant(name, _with(hyperparameters, chosen)))
    return result


def value_name(value: Any) -> str:
    """A value as it stands in a variant's name: `%g` with as many digits as it takes to tell the number exactly."""
    if isinstance(value, float):
        exact = (text for digits in range(6, 18) if float(text := f"{value:.{digits}g}") == value)
        return next(exact)
    if isinstance(value, str) and _BARE.fullmatch(value):
        return value
    if isinstance(value, list):
        return "[" + ",".join(value_name(item) for item in value) + "]"
    return json.dumps(value, separators=(",", ":"))


def _swept(hyperparameters: Mapping[str, Any], *above: str) -> dict[tuple[str, ...], list[Any]]:
    """What is swept and over which values, by path: `("base", "lr")` is the rate of the optimizer inside."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for key, value in hyperparameters.items():
        if _is_optimizer(value):
            found |= _swept(value, *above, key)
        elif (sweep := _sweep(key, value)) is not None:
            found[(*above, key)] = sweep
    return found


def _with(hyperparameters: Mapping[str, Any], chosen: Mapping[tuple[str, ...], Any], *above: str) -> dict[str, Any]:
    """The hyper-parameters with what was chosen in its place: in the order of the file, swept and fixed together."""
    return {
        key: _with(value, chosen, *above, key) if _is_optimizer(value) else chosen.get((*above, key), value)
        for key, value in hyperparameters.items()
    }


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("target"), str)


def _sweep(key: str, value: Any) -> list[Any] | None:
    """The values to try, or None when `value` is a single one."""
    if isinstance(value, dict) and "log" in value and value.keys() <= {"log", "points"}:
        values: list[Any] = list(_grid(key, value).values())
    elif isinstance(value, list):
        nested = [isinstance(item, list) for item in value]
        if key in SEQUENCES:
            if any(nested) and not all(nested):
                raise OptimizerError(f"'{key}' mixes numbers and lists: numbers make one value, lists make a sweep")
            if value and not any(nested):
                return None
        values = value
    else:
        return None
    if not values:
        raise OptimizerError(f"'{key}' is an empty list: there is nothing to try")
    seen: set[str] = set()
    for item in values:
        if (name := value_name(item)) in seen:
            raise OptimizerError(f"'{key}' lists the value {name} twice")
        seen.add(name)
    return values


def _grid(key: str, value: dict[str, Any]) -> LogGrid:
    try:
        return LogGrid.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OptimizerError(
            f"'{key}' needs a grid like {{log: [1.0e-4, 0.1], points: 4}}, with positive bounds and 2 to 1000 points; "
            f"{where}: {first['msg'].lower()}"
        ) from None
