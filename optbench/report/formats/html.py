"""A document as one self-contained HTML page: style and figures are in it, no script, and nothing is fetched."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence
from importlib import metadata, resources

from rich.cells import cell_len

from optbench.report import document as doc
from optbench.report.layout import GAP, code_lines, one_line, title_lines

ROLES: frozenset[doc.Role] = frozenset({"opening", "outline", "minor", "numbers", "details"})

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy: the browser itself holds the page to fetching and running nothing."""
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="optbench {version}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
"""
FEWEST_HEADINGS = 3
"""With fewer, a page needs no contents."""
TEXT_WIDTH = 40
"""Characters of a text that print leaves on one line, at most."""
WIDE = 130
"""A table of more characters is printed on a page in landscape."""


def render(document: doc.Report) -> str:
    """The document as a page. An illustration without panels is left out: its files may not travel with the page.

    Panels are ours, and trusted: nothing in them is escaped.
    """
    head = HEAD.format(
        policy=POLICY,
        version=metadata.version("optbench"),
        title=escape(document.title),
        style=resources.files("optbench.report").joinpath("style.css").read_text(encoding="utf-8"),
    )
    shown = tuple(doc.shown(document.blocks, ROLES))
    lines = [*_contents(shown), "<main>", f"<h1>{escape(document.title)}</h1>", *_body(shown), "</main>"]
    return head + "".join(f"{line}\n" for line in lines) + "</body>\n</html>\n"


def escape(text: str) -> str:
    """`text` on one line, for an element or a quoted attribute."""
    return html.escape(one_line(text))


def _contents(shown: Sequence[doc.Shown]) -> Iterator[str]:
    """Links to the headings of a page, for a wide screen."""
    headings = [block for block in shown if isinstance(block, doc.Heading)]
    if len(headings) < FEWEST_HEADINGS:
        return
    yield from ('<nav aria-label="Contents">', "<ol>")
    for number, heading in enumerate(headings):
        yield f'<li class="level-{heading.level}"><a href="#section-{number}">{escape(heading.text)}</a></li>'
    yield from ("</ol>", "</nav>")


def _body(shown: Sequence[doc.Shown]) -> Iterator[str]:
    """The blocks of a page, whose headings the contents link to."""
    numbers = itertools.count()
    for block in shown:
        if isinstance(block, doc.Heading):
            yield _heading(block, f' id="section-{next(numbers)}"')
        else:
            yield from _block(block)


def _heading(heading: doc.Heading, attributes: str = "") -> str:
    tag = f"h{min(heading.level + 1, 6)}"
    return f"<{tag}{attributes}>{escape(heading.text)}</{tag}>"


def _blocks(blocks: Sequence[doc.Block]) -> Iterator[str]:
    for block in doc.shown(blocks, ROLES):
        yield from _block(block)


def _block(block: doc.Shown) -> Iterator[str]:
    match block:
        case doc.Heading():
            yield _heading(block)
        case doc.Paragraph(text, tone):
            yield f"<p{_class(tone)}>{escape(text)}</p>"
        case doc.Items(items, tone):
            yield f"<ul{_class(tone)}>"
            yield from (f"<li>{escape(item)}</li>" for item in items)
            yield "</ul>"
        case doc.Commands(text):
            lines = "\n".join(map(html.escape, code_lines(text)))
            yield f'<pre tabindex="0"><code>{lines}</code></pre>'
        case doc.Table():
            yield from _table(block)
        case doc.Illustration():
            yield from _illustration(block)
        case doc.Fold(title, inner):
            yield from ("<details>", f"<summary>{escape(title)}</summary>", *_blocks(inner), "</details>")


def _class(*names: str) -> str:
    shown = [name for name in names if name and name != "plain"]
    return f' class="{" ".join(shown)}"' if shown else ""


def _table(table: doc.Table) -> Iterator[str]:
    caption = escape(table.caption)
    # Who reads with the keyboard scrolls it too, once it can have the focus.
    total = _characters(table)
    label = max(cell_len(one_line(text)) for text in (table.columns[0].title, *(row[0].text for row in table.rows)))
    yield f'<div{_class("table", "wide" * (total > WIDE))} role="region" aria-label="{caption}" tabindex="0">'
    yield f'<table style="--characters: {total}; --label: {label}">'
    yield f"<caption><span>{caption}</span></caption>"
    yield from ("<thead>", "<tr>" + "".join(map(_title, table.columns)) + "</tr>", "</thead>", "<tbody>")
    for row in table.rows:
        yield "<tr>" + "".join(_cell(cell, table, i) for i, cell in enumerate(row)) + "</tr>"
    yield from ("</tbody>", "</table>", "</div>")


def _title(column: doc.Column) -> str:
    title = "<br>".join(map(html.escape, title_lines(column)))
    return f'<th scope="col"{_class(_kind(column))}>{title}</th>'


def _cell(cell: doc.Cell, table: doc.Table, i: int) -> str:
    classes = _class(_kind(table.columns[i]), cell.tone)
    if i < table.keys:
        return f'<th scope="row"{classes}>{escape(cell.text)}</th>'
    return f"<td{classes}>{escape(cell.text)}</td>"


def _kind(column: doc.Column) -> str:
    return "number" if column.numeric else "text"


def _characters(table: doc.Table) -> int:
    """The width of a table in characters, as print needs it."""
    total = 0
    for i, column in enumerate(table.columns):
        width = max(map(cell_len, (*title_lines(column), *(one_line(row[i].text) for row in table.rows))))
        total += GAP + (width if column.numeric else min(width, TEXT_WIDTH))
    return total


def _illustration(figure: doc.Illustration) -> Iterator[str]:
    if not figure.panels:
        return
    yield "<figure>"
    yield f'<div class="panels" role="img" aria-label="{escape(figure.alt)}">'
    yield from (f'<div class="panel">\n{svg}\n</div>' for svg in figure.panels)
    yield "</div>"
    yield f"<figcaption><strong>{escape(figure.title)}.</strong> {escape(figure.caption)}</figcaption>"
    yield "</figure>"
