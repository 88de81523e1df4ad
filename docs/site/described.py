"""Read the descriptions below fields from source code, since Python discards them, and format Markdown tables."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Sequence


def descriptions(cls: type) -> dict[str, str]:
    """Return the string literals below the fields of a class, inherited fields included, by field name."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("optbench"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            match text:
                case ast.Expr(ast.Constant(str(said))):
                    found[field.target.id] = inspect.cleandoc(said)
    return found


def paragraphs(text: str | None) -> str:
    """Return a docstring as Markdown, without its Raises section: users see the error messages themselves."""
    parts = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(part for part in parts if not part.startswith("Raises"))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. Line breaks in cells become spaces, and vertical bars are escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`" if text else ""
