"""A document as GitHub-flavoured Markdown that is also legible as plain text."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from urllib.parse import quote

from rich.cells import cell_len

from optbench.report import document as doc
from optbench.report.layout import code_lines, one_line, title_lines

ROLES: frozenset[doc.Role] = frozenset({"closing", "outline", "minor", "chart", "details"})

ACTIVE = re.compile(r"[\\`*~$|]|\](?=\()|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])")
"""Pattern for markup anywhere in a line. Harmless cases do not match: an underscore within a word, `<` before a blank
or a digit, and brackets without a target in parentheses (a document defines no reference links)."""
ENTITY = re.compile(r"&(?=#?\w+;)")
LINE_START = re.compile(r"(?:[#>=\[]|[-+](?![\d.])|\d{1,9}(?=[.)](?:\s|$)))")
"""Pattern for markup at the start of a line: a heading, quotation, rule, list, or the number of a numbered list."""


def render(document: doc.Report) -> str:
    """Render the document as Markdown. An illustration whose file was not written is left out."""
    return "\n\n".join([f"# {_heading(document.title)}", *_blocks(document.blocks)]) + "\n"


def escape(text: str) -> str:
    """Put `text` on one line and escape it for use within a line or a table cell."""
    return ENTITY.sub("&amp;", ACTIVE.sub(lambda found: "\\" + found[0], one_line(text)))


def _line(text: str) -> str:
    """Escape `text` for use at the start of a line as well."""
    escaped = escape(text)
    start = LINE_START.match(escaped)
    if start is None:
        return escaped
    at = start.end() if start[0].isdigit() else 0
    return f"{escaped[:at]}\\{escaped[at:]}"


def _heading(text: str) -> str:
    return re.sub(r"#(?=#*$)", r"\\#", escape(text))  # closing number signs would be removed


def _bold(text: str) -> str:
    escaped = escape(text)
    return f"**{escaped}**" if escaped else ""


def _blocks(blocks: Sequence[doc.Block]) -> list[str]:
    parts: list[str] = []
    for block in doc.shown(blocks, ROLES):
        for part in _block(block):
            if parts and part.startswith("- ") and parts[-1].startswith("- "):
                parts.append("<!-- -->")  # otherwise two lists would be joined
            parts.append(part)
    return parts


def _block(block: doc.Shown) -> list[str]:
    match block:
        case doc.Heading(text, level):
            return [f"{'#' * min(level + 1, 6)} {_heading(text)}"]
        case doc.Paragraph(text, tone):
            line = _bold(text) if tone in ("good", "bad") else _line(text)
            return [f"> [!WARNING]\n> {line}" if tone == "warning" else line]
        case doc.Items(items, tone):
            lines = [f"- {_bold(item) if tone in ('good', 'bad') else _line(item)}" for item in items]
            return ["\n".join(["> [!WARNING]", *(f"> {line}" for line in lines)] if tone == "warning" else lines)]
        case doc.Commands(text):
            return [_code(text)]
        case doc.Table():
            return [_bold(block.caption), _table(block)]
        case doc.Illustration():
            return _illustration(block)
        case doc.Fold(title, inner):
            # Text on the summary's line is HTML, not Markdown; after the empty line it is Markdown.
            summary = html.escape(one_line(title), quote=False)
            return [f"<details>\n<summary>{summary}</summary>", *_blocks(inner), "</details>"]


def _code(text: str) -> str:
    lines = code_lines(text)
    runs = re.findall(r"^ {0,3}(`{3,})", "\n".join(lines), re.MULTILINE)
    fence = "`" * (max(map(len, runs), default=2) + 1)
    return "\n".join([f"{fence}bash", *lines, fence])


def _table(table: doc.Table) -> str:
    header = [escape(" ".join(title_lines(column))) for column in table.columns]
    rows = [header, *([_cell(cell) for cell in row] for row in table.rows)]
    # Cells are padded so that the table is legible without rendering. A delimiter has at least 3 characters.
    widths = [max(3, *(cell_len(row[i]) for row in rows)) for i in range(len(header))]
    delimiters = [
        f"{'-' * (width - 1)}:" if column.numeric else f":{'-' * (width - 1)}"
        for column, width in zip(table.columns, widths, strict=True)
    ]
    lines = []
    for row in (rows[0], delimiters, *rows[1:]):
        padded = []
        for text, width, column in zip(row, widths, table.columns, strict=True):
            blanks = " " * (width - cell_len(text))
            padded.append(blanks + text if column.numeric else text + blanks)
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _cell(cell: doc.Cell) -> str:
    return escape(cell.text) if cell.tone in ("plain", "quiet") else _bold(cell.text)


def _illustration(figure: doc.Illustration) -> list[str]:
    file = figure.files.get("svg") or figure.files.get("png")
    if file is None:
        return []
    alt = re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", escape(figure.alt))
    return [_bold(figure.title), f"![{alt}]({quote(file, errors='surrogateescape')})", _line(figure.caption)]
