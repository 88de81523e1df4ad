"""Describe the types of settings in words, such as `whole number of at least 1, or null`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from optbench.kinds import Kind

ANY = 2**62
"""Bounds of this size or larger only exclude integers beyond 64 bits, and are not shown."""
LONG = 60
"""Maximum length, in characters, of a default that is a mapping; longer ones are shown in the mapping's own table."""
PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any value"}
BOUNDS = {"gt": "above {}", "ge": "of at least {}", "lt": "below {}", "le": "of at most {}"}
Link = Callable[[type[BaseModel]], str]


def in_words(field: FieldInfo, link: Link) -> str:
    """Return the type of a field and its bounds in words. link: returns the text for a model."""
    words, null = _words(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation, link)
    return f"{words}, or null" if null else words


def _words(hint: Any, link: Link) -> tuple[str, bool]:
    """Return a type in words, and whether null is one of its values."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        words, null = _words(inside[0], link)
        bounds = _bounds(inside[1:])
        return (f"{words} {bounds}" if bounds else words), null
    if origin is Literal:
        return _either([f"`{value}`" for value in inside]), False
    if origin in (typing.Union, types.UnionType):
        found = [_words(arm, link) for arm in inside if arm is not type(None)]
        return _either([words for words, _ in found]), type(None) in inside or any(null for _, null in found)
    if origin in (list, tuple):
        many = [arm for arm in inside if arm is not ...]
        return f"list of {f'{len(many)} ' if len(many) > 1 else ''}{_plural(_words(many[0], link)[0])}", False
    if origin is dict:
        return f"mapping from names to {_plural(_words(inside[1], link)[0])}", False
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return link(hint), False
    return PLAIN.get(hint, getattr(hint, "__name__", str(hint))), False


def _bounds(metadata: tuple[Any, ...]) -> str:
    found = []
    for item in (part for entry in metadata for part in getattr(entry, "metadata", [entry])):
        for key, form in BOUNDS.items():
            bound = getattr(item, key, None)
            if isinstance(bound, int | float) and abs(bound) < ANY:
                found.append(form.format(f"{bound:g}"))
    return " and ".join(found).replace(" and of ", " and ")


def _plural(words: str) -> str:
    """Return the words for several values of a type, as in `whole numbers of at least 1`."""
    return re.sub(r"^((?:whole )?number|list|mapping)\b", r"\1s", words)


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def default(field: FieldInfo) -> str:
    """Return the default of a field as YAML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) and len(yaml_of(value)) > LONG:
        return "the defaults of its keys"
    return f"`{yaml_of(value)}`"


def yaml_of(value: Any) -> str:
    if isinstance(value, Kind) and not value.settings:
        return value.kind if value.short else f"{{kind: {value.kind}}}"
    if isinstance(value, BaseModel):
        return yaml_of(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_of, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
