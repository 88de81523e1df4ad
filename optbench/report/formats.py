"""The formats of a document. To add one: a module with `render(document) -> str`, and a line here."""

from __future__ import annotations

import importlib
import typing
from pathlib import PurePath

from optbench.errors import UsageError, unknown
from optbench.report.document import Document, Format

FORMATS: tuple[Format, ...] = typing.get_args(Format)

_MODULES: dict[Format, str] = {"markdown": "markdown", "html": "html", "latex": "latex"}
"""The terminal's rendering needs to know the terminal (`console`), and records have no layout (`records`)."""

_SUFFIXES: dict[str, Format] = {
    ".txt": "terminal",
    ".md": "markdown",
    ".html": "html",
    ".htm": "html",
    ".tex": "latex",
    ".csv": "csv",
    ".json": "json",
}


def choose_format(name: str | None, output: str | None) -> Format:
    """Return the format that is named; else that of the output file's suffix; else, without a suffix, the terminal's.

    Raises:
        UsageError: there is no such format, or none with this suffix.
    """
    if name is None:
        suffix = PurePath(output or "").suffix
        if suffix and suffix.lower() not in _SUFFIXES:
            raise UsageError(f"--output {output}: {unknown('suffix', suffix, _SUFFIXES)}; --format chooses regardless")
        return _SUFFIXES[suffix.lower()] if suffix else "terminal"
    found = next((known for known in FORMATS if known == name), None)
    if found is None:
        raise UsageError(f"--format: {unknown('format', name, FORMATS)}")
    return found


def render_text(document: Document, chosen: Format) -> str:
    """The document in one of the formats that are text: markdown, html or latex."""
    text: str = importlib.import_module(f"optbench.report.{_MODULES[chosen]}").render(document)
    return text
