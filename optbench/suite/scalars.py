"""The plain scalars of a suite file, as in YAML 1.2.

`1e-3` is a number and `on` (a key of `early_stopping`) is text. PyYAML implements YAML 1.1, so its rules are replaced.
Values that the two versions read differently are rejected, so that every YAML reader reads a suite the same way.
"""

from __future__ import annotations

import math
import re
from typing import Any

TAG = "tag:yaml.org,2002:"
_DIGITS = r"\d+(?:_\d+)*"
_PATTERNS = {
    "null": re.compile(r"null|Null|NULL|~|", re.ASCII),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE", re.ASCII),
    "int": re.compile(rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII),
    "float": re.compile(
        rf"[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?\d+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        re.ASCII,
    ),
}
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_WORD_FOR_BOOL = re.compile(r"yes|no|on|off", re.ASCII | re.IGNORECASE)
_LEADING_ZERO = re.compile(r"[-+]?0[\d_]+", re.ASCII)


def add_scalar_rules(resolver: Any) -> None:
    """Add the rules for plain null, bool, int and float scalars to a PyYAML loader or dumper class."""
    for kind, pattern in _PATTERNS.items():
        resolver.add_implicit_resolver(TAG + kind, re.compile(rf"(?:{pattern.pattern})\Z", re.ASCII), None)


def add_refused_words(dumper: Any) -> None:
    """Make a PyYAML dumper class quote text that `read_scalar` rejects without quotes."""
    for pattern in (_WORD_FOR_BOOL, _NOT_FINITE):
        dumper.add_implicit_resolver(TAG + "bool", re.compile(rf"(?:{pattern.pattern})\Z", pattern.flags), None)


def read_scalar(kind: str, text: str, plain: bool) -> bool | int | float | str | None:
    """Return the value of a scalar with the tag `!!kind`. plain: whether the scalar has no quotes.

    Raises:
        ValueError: the scalar is not allowed in a suite; the message is for the user.
    """
    if kind in _PATTERNS and not _PATTERNS[kind].fullmatch(text):
        raise ValueError(f"'{text[:60]}' is not a value of the tag !!{kind}")
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return _whole(text)
        case "float":
            return _number(text)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("expected text, got half of a surrogate pair")
    if plain and _WORD_FOR_BOOL.fullmatch(text):
        raise ValueError(
            f"'{text}' is text in YAML 1.2 and a bool in 1.1: write true or false (or null for none), or quote it"
        )
    if plain and _NOT_FINITE.fullmatch(text):
        raise ValueError(f"expected a finite number, got {text} (quote it if it is text)")
    return text


def _whole(text: str) -> int:
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"'{text[:60]}' is octal in YAML 1.1 and decimal in 1.2: write it without leading zeros")
    # int() rejects thousands of digits; every 64-bit number has fewer than 40.
    value = int(text, 0) if len(text) <= 40 else 2**64
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"expected a whole number of at most 64 bits, got {text[:60]}")
    return value


def _number(text: str) -> float:
    value = math.inf if _NOT_FINITE.fullmatch(text) else float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text[:60]}")
    return value
