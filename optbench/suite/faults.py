"""Faults in a suite as shown to the user: pydantic's errors with their locations and the nearest valid names."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from optbench.counting import count
from optbench.errors import MANY_NAMES, KindError, SuiteError, UsageError, escaped, nearest, unknown
from optbench.kinds import Kind
from optbench.suite.document import Document, KeyPath, Place
from optbench.suite.fields import HYPERPARAMETER_PATTERN, METRIC_PATTERN, NAME_PATTERN
from optbench.suite.schema import OptimizerSettings, Suite

MAX_SHOWN = 5
OPTIMIZER = "adamw"
"""The registered optimizer that messages give as an example."""

_NEEDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
}


_NAMES = {
    NAME_PATTERN: "letters, digits and _ . + - only, with a letter or a digit first",
    METRIC_PATTERN: "letters, digits and _ . + - only, with a letter or a digit first, and settings after a space",
    HYPERPARAMETER_PATTERN: "letters, digits and _ only, with no digit first",
}


@dataclass(frozen=True)
class Fault:
    """A fault and its location."""

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {escaped(self.message)}"


def raise_faults(faults: Iterable[Fault]) -> NoReturn:
    """Raise the first faults, in the order of the file, as one error with a line for each fault.

    The error is a UsageError if all faults are located on the command line, and a SuiteError otherwise.
    """
    distinct = list(dict.fromkeys(faults))
    distinct.sort(
        key=lambda fault: (fault.place.source * (not fault.place.is_override), fault.place.line, fault.place.column)
    )
    assert distinct
    lines = [str(fault) for fault in distinct[:MAX_SHOWN]]
    if len(distinct) > MAX_SHOWN:
        lines[-1] += f" (and {len(distinct) - MAX_SHOWN} more)"
    error = UsageError if all(fault.place.is_override for fault in distinct) else SuiteError
    raise error(*lines) from None


def validation_faults(error: ValidationError, document: Document) -> list[Fault]:
    """Convert pydantic's errors about the document's value to faults."""
    details = error.errors(include_url=False)
    faults = [_fault(detail, document) for detail in details]
    # `taks:` is both an unknown key and the reason why `tasks` is missing, and is reported only once.
    meant = {
        (path[:-1], guess)
        for path, kind, detail in ((*_locate(detail["loc"], document)[:2], detail) for detail in details)
        if detail["type"] == "extra_forbidden" and (guess := nearest(str(path[-1]), _keys(_model(kind)))) is not None
    }
    # A file that cannot be imported is reported once, however many kinds it defines.
    refused = [d["ctx"]["reason"].partition(": ")[2] if d["type"] == "kind_refused" else None for d in details]
    return [
        fault
        for i, (fault, detail) in enumerate(zip(faults, details, strict=True))
        if not (refused[i] and refused[i] in refused[:i])
        if detail["type"] != "missing" or (_locate(detail["loc"], document)[0][:-1], detail["loc"][-1]) not in meant
    ]


def admits_null(path: KeyPath) -> bool:
    """Return whether null is a valid value at `path`; False for settings of a kind and for hyper-parameters."""
    kind: Any = Suite
    for part in path:
        if kind is None or any(isinstance(option, type) and issubclass(option, Kind) for option in _options(kind)):
            return False
        kind = _inside(kind, part)
    return _admits_null(kind)


def shown_path(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _fault(detail: ErrorDetails, document: Document) -> Fault:
    path, kind, on_key = _locate(detail["loc"], document)
    what, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    around = path[:-1] if what == "missing" else path
    if what in ("missing", "kind_missing") and around in document.implied and not _is_model(_at(around[:-1], document)):
        return _unknown_name(around, document)
    if what == "missing":
        is_target = path[0] == "optimizers" and path[-1] == "target"
        hint = f", as in target: {OPTIMIZER}" if is_target else ""
        other = "kind" if is_target else "seed" if path == ("seeds",) else None
        return _missing_key(around, f"'{path[-1]}'{hint}", other, value, document)
    if what == "extra_forbidden":
        message = _prefixed(around[:-1], unknown("key", str(path[-1]), _keys(_model(kind))))
        return Fault(document.key_place(path), message)
    if what == "kind_missing":
        names = _model(kind).registry.names  # type: ignore[attr-defined]
        allowed = f" (one of: {', '.join(names)})" if len(names) <= MANY_NAMES else ""
        return _missing_key(path, f"'kind'{allowed}", "target", value, document)
    if what == "kind_refused":
        path = (*path, "kind") if isinstance(value, dict) else path
        return Fault(document.value_place(path), _prefixed(path, context["reason"]))
    if what == "literal_error" and isinstance(value, str):
        message = _prefixed(path, unknown("choice", value, re.findall(r"'([^']*)'", context["expected"])))
        return Fault(document.value_place(path), message)
    if on_key or what == "string_pattern_mismatch":
        place = document.key_place(path) if on_key else document.value_place(path)
        allowed = _NAMES.get(context.get("pattern", ""), f"at most {context.get('max_length')} characters")
        return Fault(place, _prefixed(path[:-1] if on_key else path, f"the name {_shown(value)}: expected {allowed}"))
    if what == "value_error" and isinstance(value, dict):
        # The message of a validator for an entire mapping begins with the key in question.
        key = next((key for key in value if str(context["error"]).startswith(repr(key))), None)
        place = document.value_place(path) if key is None else document.key_place((*path, key))
        return Fault(place, _prefixed(path, str(context["error"])))
    return Fault(document.value_place(path), _prefixed(path, _needed(what, context, value, detail["msg"], kind)))


def _missing_key(path: KeyPath, key: str, other: str | None, value: Any, document: Document) -> Fault:
    """Return the fault for a mapping without a required key. other: a key that users often write in its place."""
    if other is not None and isinstance(value, dict) and other in value:
        place, got = document.key_place((*path, other)), f", got the key '{other}'"
    else:
        place, got = document.value_place(path), ""
    return Fault(place, _prefixed(path, f"expected the key {key}{got}"))


def _needed(what: str, context: dict[str, Any], value: Any, fallback: str, kind: Any) -> str:
    if what == "value_error":
        return str(context["error"])
    if what == "literal_error":
        return f"expected {context['expected']}, got {_shown(value)}"
    if what in ("too_short", "too_long"):
        least = what == "too_short"
        bound = f"at {'least' if least else 'most'} {count(context['min_length' if least else 'max_length'], 'entry')}"
        return f"expected {bound}, got {context['actual_length']}"
    if what in ("string_too_short", "string_too_long"):
        least = what == "string_too_short"
        length = count(context["min_length" if least else "max_length"], "character")
        return f"expected at {'least' if least else 'most'} {length}, got {_shown(value)}"
    if what in _NEEDS:
        if what in ("model_type", "model_attributes_type") and value and isinstance(value, str):
            # A name or target without settings is a common short form.
            classes = [option for option in _options(kind) if isinstance(option, type)]
            key = (
                "target"
                if OptimizerSettings in classes
                else "kind"
                if any(issubclass(c, Kind) for c in classes)
                else ""
            )
            if key:
                return f"expected a mapping such as {{{key}: {value}}}, got {_shown(value)}"
        # Users often write another word for null: `off`, `none`, 0.
        null = ", or null" if _is_model(kind) and _admits_null(kind) else ""
        bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in context.items()}
        return f"expected {_NEEDS[what].format(**bounds)}{null}, got {_shown(value)}"
    return f"{fallback.replace('Input should be', 'expected')}, got {_shown(value)}"


def _unknown_name(path: KeyPath, document: Document) -> Fault:
    """Return the fault for a name that occurs only in an override and is probably a misspelt name from the file."""
    siblings = document.value
    for part in path[:-1]:
        siblings = siblings[part]
    written = [name for name in siblings if (*path[:-1], name) not in document.implied]
    what = str(path[-2]).removesuffix("s")
    return Fault(document.key_place(path), _prefixed(path[:-1], unknown(what, str(path[-1]), written)))


def _prefixed(path: KeyPath, message: str) -> str:
    return f"{shown_path(path)}: {message}" if path else message


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _locate(loc: tuple[str | int, ...], document: Document) -> tuple[KeyPath, Any, bool]:
    """Convert pydantic's location to a path into the file, the type expected there, and whether it refers to a key.

    Within a kind's settings, the type is determined by the kind that the document names.
    """
    kind: Any = Suite
    path: list[str | int] = []
    for part in loc:
        if part == "[key]":
            return tuple(path), kind, True
        kind = _chosen(kind, tuple(path), document)
        path.append(part)
        inner = _inside(kind, part)
        # An unknown key has no type: keep that of the mapping, whose keys are the valid ones.
        kind = kind if inner is None else inner
    return tuple(path), kind, False


def _chosen(kind: Any, path: KeyPath, document: Document) -> Any:
    """Replace a `Kind` type by the settings model of the kind named at `path`; return other types unchanged."""
    if isinstance(kind, type) and issubclass(kind, Kind):
        value = document.value
        for part in path:
            value = value[part]
        named = value.get("kind") if isinstance(value, dict) else value
        if isinstance(named, str):
            with contextlib.suppress(KindError):
                return kind.registry.settings(named)
    return kind


def _at(path: KeyPath, document: Document) -> Any:
    return _locate(path, document)[1]


def _options(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _options(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [option for arm in get_args(kind) for option in _options(arm)]
    return [] if kind is NoneType else [kind]


def _admits_null(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _admits_null(get_args(kind)[0])
    return (get_origin(kind) in (Union, UnionType) and any(map(_admits_null, get_args(kind)))) or kind is NoneType


def _inside(kind: Any, part: str | int) -> Any:
    for option in _options(kind):
        if _is_model(option) and part in option.model_fields:
            return option.model_fields[str(part)].annotation
        if get_origin(option) in (dict, list, set, frozenset):
            return get_args(option)[-1]
        if get_origin(option) is tuple:
            inner = [inside for inside in get_args(option) if inside is not ...]
            return inner[min(part, len(inner) - 1)] if isinstance(part, int) and inner else None
    return None


def _is_model(kind: Any) -> bool:
    return any(isinstance(option, type) and issubclass(option, BaseModel) for option in _options(kind))


def _model(kind: Any) -> type[BaseModel]:
    model: type[BaseModel] = next(option for option in _options(kind) if _is_model(option))
    return model


def _keys(model: type[BaseModel]) -> Iterator[str]:
    yield from model.model_fields
    if model is Suite:
        yield "extends"  # resolved before validation
