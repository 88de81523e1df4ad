"""The variants of an optimizer: every combination of its swept hyper-parameters."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

from optbench.errors import OptimizerError
from optbench.kinds import value_name
from optbench.suite.schema import LogGrid

KeyPath: TypeAlias = tuple[str, ...]
Combined: TypeAlias = tuple[dict[KeyPath, Any], dict[KeyPath, list[Any]]]
"""One listed setting, and the sweeps with which it is combined."""

MAX_VARIANTS = 10_000
LISTED = "variants"
"""The key under which an optimizer can list settings instead of sweeping all combinations of values."""

# Hyper-parameters of torch.optim and pytorch-optimizer whose single value is a sequence of numbers.
SEQUENCES = frozenset(
    {"betas", "adamw_betas", "betas_1d", "etas", "nus", "step_sizes", "ns_coefficients", "ns_coeffs"},
)


@dataclass(frozen=True)
class Variant:
    """One setting of an optimizer's hyper-parameters."""

    name: str
    """`default` if nothing is swept, else the swept keys and their values, e.g. `lr=0.001,base.momentum=0.9`."""
    hyperparameters: dict[str, Any]


def variants(hyperparameters: Mapping[str, Any]) -> list[Variant]:
    """Return all combinations of the swept hyper-parameters, the last key varying fastest.

    A list, or `{log: [low, high], points: n}`, is a sweep. If a single value is itself a sequence (`betas`), a list of
    numbers is a value and a list of lists is a sweep. A mapping with a `target` is an optimizer inside a wrapper, whose
    hyper-parameters can also be swept. Any other mapping is a value. The key `variants` holds a list of settings, each
    combined with every combination of the other sweeps.

    Raises:
        OptimizerError: an empty sweep, a value or setting listed twice, an invalid grid, or more than `MAX_VARIANTS`
            combinations; the message quotes the key.
    """
    fixed, combined = _combined(hyperparameters)
    if combined == [({}, {})]:
        return [Variant("default", fixed)]
    if (count := _count(combined)) > MAX_VARIANTS:
        swept = {path: sweep for _, sweeps in combined for path, sweep in sweeps.items()}
        longest = max(swept, key=lambda path: len(swept[path])) if swept else (LISTED,)
        raise OptimizerError(f"'{'.'.join(longest)}': expected at most {MAX_VARIANTS} variants, got {count}")
    result = []
    for setting, sweeps in combined:
        for combination in itertools.product(*sweeps.values()):
            chosen = setting | dict(zip(sweeps, combination, strict=True))
            result.append(Variant(variant_name(chosen), with_values(fixed, chosen)))
    return result


def count_variants(hyperparameters: Mapping[str, Any]) -> int:
    """Return the number of variants without constructing them.

    Raises:
        OptimizerError: as in `variants`, except for too many combinations.
    """
    return _count(_combined(hyperparameters)[1])


def _count(combined: Sequence[Combined]) -> int:
    return sum(math.prod(map(len, sweeps.values())) for _, sweeps in combined)


def _combined(hyperparameters: Mapping[str, Any]) -> tuple[dict[str, Any], list[Combined]]:
    """Return the hyper-parameters without `variants`, and a list of pairs.

    Each pair is a setting listed under `variants` and the sweeps of keys that are not in the setting. Without
    `variants`, there is one pair, with an empty setting.
    """
    fixed = {key: value for key, value in hyperparameters.items() if key != LISTED}
    listed = listed_settings(hyperparameters[LISTED]) if LISTED in hyperparameters else [{}]
    swept = _swept(fixed)
    # A key in a listed setting is not swept there.
    return fixed, [
        (setting, {path: sweep for path, sweep in swept.items() if path not in setting}) for setting in listed
    ]


def variant_name(values: Mapping[KeyPath, Any]) -> str:
    """Return the name of the variant with these values, such as `lr=0.1,momentum=0.9`."""
    return ",".join(f"{'.'.join(path)}={value_name(value)}" for path, value in values.items())


def with_values(hyperparameters: Mapping[str, Any], values: Mapping[KeyPath, Any]) -> dict[str, Any]:
    """Return the hyper-parameters with these values inserted; keys keep their order, and new keys are appended."""
    found = dict(hyperparameters)
    for path, value in values.items():
        inner = found.get(path[0])
        base = inner if isinstance(inner, Mapping) else {}
        found[path[0]] = with_values(base, {path[1:]: value}) if len(path) > 1 else value
    return found


def leaves(settings: Mapping[str, Any]) -> dict[KeyPath, Any]:
    """Return the values in a mapping of hyper-parameters, by path.

    A nested mapping holds the settings of an inner optimizer: the path of its learning rate is `("base", "lr")`.
    """
    found: dict[KeyPath, Any] = {}
    for key, value in settings.items():
        inner = leaves(value) if isinstance(value, Mapping) and value else {(): value}
        found |= {(key, *path): item for path, item in inner.items()}
    return found


def listed_settings(settings: Any) -> list[dict[KeyPath, Any]]:
    """Return the values of each setting listed under `variants`, by path.

    Raises:
        OptimizerError: `settings` is not a list of settings, or contains one twice.
    """
    if not (isinstance(settings, list) and settings and all(isinstance(item, dict) and item for item in settings)):
        raise OptimizerError(
            f"'{LISTED}': expected a list of settings, as in [{{lr: 0.1}}, {{lr: 0.3, momentum: 0.9}}]"
        )
    found = [leaves(item) for item in settings]
    for i, one in enumerate(found):
        if one in found[:i]:
            raise OptimizerError(f"'{LISTED}' lists the setting {json.dumps(settings[i])} twice")
    return found


def _swept(hyperparameters: Mapping[str, Any], *above: str) -> dict[KeyPath, list[Any]]:
    """Return the values of each sweep by path. above: the path of the optimizer that contains `hyperparameters`."""
    found: dict[KeyPath, list[Any]] = {}
    for key, value in hyperparameters.items():
        if isinstance(value, dict) and isinstance(value.get("target"), str):  # an inner optimizer
            found |= _swept(value, *above, key)
        elif (sweep := values_to_try(key, value)) is not None:
            found[(*above, key)] = sweep
    return found


def values_to_try(key: str, value: Any) -> list[Any] | None:
    """Return the values of a sweep, or None if `value` is a single value.

    Raises:
        OptimizerError: an empty sweep, a value listed twice or an invalid grid; the message quotes the key.
    """
    if isinstance(value, dict) and "log" in value and value.keys() <= {"log", "points"}:
        values: list[Any] = list(log_grid(key, value).values())
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


def log_grid(key: str, value: Mapping[str, Any]) -> LogGrid:
    """Validate `{log: [low, high], points: n}`; raise OptimizerError, quoting the key, if it is invalid."""
    try:
        return LogGrid.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OptimizerError(
            f"'{key}': expected a grid such as {{log: [1.0e-4, 0.1], points: 4}}, with 2 to 1000 points and "
            f"both bounds above 0; {where}: {first['msg'].lower()}"
        ) from None
