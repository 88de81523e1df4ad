"""Plain values as YAML, as one would write them by hand in a suite."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optbench.errors import SuiteError
from optbench.suite.document import parse_yaml

WIDTH = 120
"""What fits into so many columns stands on one line, as in the shipped suites."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.+/-]*")


@dataclass(frozen=True)
class Written:
    """A scalar as it stands in the file: `1.0e-4` is not to become `0.0001` in a copy."""

    text: str


def wrapped(items: Sequence[Any], column: int) -> list[str]:
    """A list in brackets over several lines, the first bracket at `column`."""
    lines = [" " * column + "["]
    for item in map(flow_text, items):
        if len(lines[-1]) + len(item) + 1 > WIDTH and not lines[-1].endswith("["):
            lines[-1] = lines[-1].rstrip()
            lines.append(" " * (column + 1))
        lines[-1] += item + ", "
    lines[-1] = lines[-1].removesuffix(", ") + "]"
    return lines


def flow_text(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar_text(key)}: {flow_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow_text, value)) + "]"
    if isinstance(value, Written):
        return value.text
    if isinstance(value, str):
        return scalar_text(value)
    if isinstance(value, float):
        return _number(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    assert isinstance(value, int), f"a plain value; {value!r} came"
    return str(value)


def _number(value: float) -> str:
    """The shortest text that is this number: `0.000464`, `1.0e-5` (without the point, YAML 1.1 would read text)."""
    assert math.isfinite(value), f"a finite number; {value} came"
    mantissa, e, exponent = repr(float(value)).partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}" if e else mantissa


@functools.lru_cache(1024)  # the same few keys again and again
def scalar_text(text: str) -> str:
    """Text, quoted unless every reader takes it for text as it is."""
    if _WORD.fullmatch(text):
        try:
            if parse_yaml(text, "").value == text:
                return text
        except SuiteError:
            pass  # `on` or `nan`, which needs quotes
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
