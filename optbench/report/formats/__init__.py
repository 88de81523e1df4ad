"""The formats of a document. To add one, add a module here with `render(document) -> str`, and a line in `FORMATS`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import PurePath

from optbench.errors import UsageError, unknown
from optbench.report.document import Report


@dataclass(frozen=True)
class Format:
    """The properties of a report format.

    suffixes: the file suffixes that select the format.
    inline: whether figures are embedded instead of written to separate files.
    records: whether the format is for programs and contains only records.
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
    """Return the named format or, by default, the format for the suffix of the output file.

    If there is no output file, or its name has no suffix, the format is `terminal`.

    Raises:
        UsageError: the format or the suffix is unknown.
    """
    if name is None:
        suffixes = {suffix: found for found, format_ in FORMATS.items() for suffix in format_.suffixes}
        suffix = PurePath(output or "").suffix
        if suffix and suffix.lower() not in suffixes:
            raise UsageError(f"--output {output}: {unknown('suffix', suffix, suffixes)}; --format overrides the suffix")
        return suffixes[suffix.lower()] if suffix else "terminal"
    if name not in FORMATS:
        raise UsageError(f"--format: {unknown('format', name, FORMATS)}")
    return name


def render_text(document: Report, chosen: str) -> str:
    """Render the document in one of `FORMATS`."""
    text: str = importlib.import_module(f"optbench.report.formats.{chosen}").render(document)
    return text
