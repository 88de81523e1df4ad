"""The formats of a document. To add one: a module here with `render(document) -> str`, and a line in `FORMATS`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import PurePath

from optbench.errors import UsageError, unknown
from optbench.report.document import Report


@dataclass(frozen=True)
class Format:
    """suffixes: of its files. inline: whether figures stand in the text itself, not in files next to it.

    records: whether it is for programs, and shows only records.
    """

    suffixes: tuple[str, ...]
    inline: bool = False
    records: bool = False


FORMATS = {
    "terminal": Format((".txt",)),
    "markdown": Format((".md",)),
    "html": Format((".html", ".htm"), inline=True),
    "latex": Format((".tex",)),
    "csv": Format((".csv",), records=True),
    "json": Format((".json",), records=True),
}


def choose_format(name: str | None, output: str | None) -> str:
    """Return the format that is named; else that of the output file's suffix; else, without a suffix, the terminal's.

    Raises:
        UsageError: there is no such format, or none with this suffix.
    """
    if name is None:
        suffixes = {suffix: found for found, format_ in FORMATS.items() for suffix in format_.suffixes}
        suffix = PurePath(output or "").suffix
        if suffix and suffix.lower() not in suffixes:
            raise UsageError(f"--output {output}: {unknown('suffix', suffix, suffixes)}; --format chooses regardless")
        return suffixes[suffix.lower()] if suffix else "terminal"
    if name not in FORMATS:
        raise UsageError(f"--format: {unknown('format', name, FORMATS)}")
    return name


def render_text(document: Report, chosen: str) -> str:
    """The document as text in one of `FORMATS`."""
    text: str = importlib.import_module(f"optbench.report.formats.{chosen}").render(document)
    return text
