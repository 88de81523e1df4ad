"""A document as text for a terminal of at least 60 columns, without colours if the output is piped."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segments
from rich.table import Table as Grid
from rich.text import Text

from optbench.report import document as doc
from optbench.report.layout import GAP, code_lines, one_line, pack, title_lines

ROLES: frozenset[doc.Role] = frozenset({"closing", "chart"})
FILE_WIDTH = 120

HELD = ("\N{NO-BREAK SPACE}", "\ue000")
"""The no-break space, at which rich would break a line, and the character that replaces it during wrapping."""
ARROW = (re.compile(" (?=[↑↓](?: |$))"), "\ue001")
"""The blank before a metric's arrow, and the character that replaces this blank during wrapping, so that a line never
breaks between the name and the arrow."""
LABEL_WIDTH = 24
"""Maximum width to which a text widens its column; a longer text is wrapped."""

STYLES: dict[doc.Tone, str] = {"plain": "", "quiet": "dim", "warning": "yellow", "good": "green", "bad": "red"}


def render(document: doc.Report) -> str:
    """Render the document for a file: `FILE_WIDTH` columns, without colours."""
    file = io.StringIO()
    show(document, Console(file=file, width=FILE_WIDTH))
    return re.sub(" +$", "", file.getvalue(), flags=re.MULTILINE)


def show(document: doc.Report, console: Console) -> None:
    """Print `document` at the width of `console`, with only the short text of each fold and without illustrations."""
    console.print(Text(one_line(document.title), style="bold"))
    before: doc.Shown | None = None
    for block in _printed(document.blocks):
        if before is None or _apart(before, block):
            console.print()
        _print(block, console)
        before = block


def _printed(blocks: Sequence[doc.Block]) -> Iterator[doc.Shown]:
    for block in doc.shown(blocks, ROLES):
        if isinstance(block, doc.Fold):
            if block.instead:
                yield doc.Paragraph(block.instead, "quiet")
        elif not isinstance(block, doc.Illustration):
            yield block


def _apart(before: doc.Shown, block: doc.Shown) -> bool:
    """Return whether an empty line separates two blocks. Footnotes and warnings directly follow their subject."""
    footnote = isinstance(block, doc.Paragraph | doc.Items) and block.tone in ("quiet", "warning")
    if isinstance(before, doc.Heading):
        return not isinstance(block, doc.Paragraph | doc.Items)
    if isinstance(before, doc.Paragraph | doc.Items) and before.tone == "plain":
        return True
    return not footnote or isinstance(before, doc.Commands)


def _print(block: doc.Shown, console: Console) -> None:
    match block:
        case doc.Heading(text):
            console.print(Text(one_line(text), style="bold"))
        case doc.Paragraph(text, tone):
            if tone == "warning":  # the mark is visible even without colours
                _hanging("! ", text, tone, console)
            else:
                console.print(Text(one_line(text), style=STYLES[tone]))
        case doc.Items(items, tone):
            for item in items:
                _hanging("! " if tone == "warning" else "- ", item, tone, console)
        case doc.Commands(text):
            for line in code_lines(text):
                # soft_wrap: a long command remains one line when copied.
                console.print(Text(f"  {line}"), soft_wrap=True)
        case doc.Table():
            print_table(block, console)
        case _:
            raise AssertionError(block)


def _hanging(mark: str, text: str, tone: doc.Tone, console: Console) -> None:
    grid = Grid.grid(padding=0)
    grid.add_column(width=len(mark), no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark), Text(one_line(text)), style=STYLES[tone])
    console.print(grid)


class _Sizes(NamedTuple):
    """The minimum and the natural width of a column, and the texts of its cells."""

    least: int
    natural: int
    texts: Sequence[str]


def print_table(table: doc.Table, console: Console) -> None:
    """Print a table, split by columns if the console is too narrow for it."""
    titles = [[_held(line) for line in title_lines(column)] for column in table.columns]
    texts = [[_held(one_line(row[i].text)) for row in table.rows] for i in range(len(table.columns))]
    natural = [max(map(cell_len, (*title, *column))) for title, column in zip(titles, texts, strict=True)]
    least = [_least(*entry) for entry in zip(table.columns, titles, texts, natural, strict=True)]
    wish = [min(full, max(least_, LABEL_WIDTH)) for full, least_ in zip(natural, least, strict=True)]
    # Texts stay on one line unless wrapping them results in fewer pieces.
    pieces = min((_pieces(table, widths, console.width) for widths in (wish, least)), key=len)
    pieces_shown = [[*range(table.keys), *piece] for piece in pieces]
    sizes = [_Sizes(*entry) for entry in zip(least, natural, texts, strict=True)]
    widths = [_widths([sizes[j] for j in piece], console.width, console) for piece in pieces_shown]
    keys = [min(piece[i] for piece in widths) for i in range(table.keys)]  # the same in all pieces
    for i in range(len(pieces)):
        if i:
            console.print()
        caption = one_line(table.caption) + (" (continued)" if i else "")
        console.print(Text(caption, style="bold"))
        grid = _grid(table, pieces_shown[i], titles, texts, [*keys, *widths[i][table.keys :]])
        # If the terminal is narrower than the keys and one column, it wraps lines itself, so no number is truncated.
        total = sum(keys) + sum(widths[i][table.keys :]) + GAP * (len(pieces_shown[i]) - 1)
        options = console.options.update(width=max(console.width, total))
        segments = (part._replace(text=_released(part.text)) for part in console.render(grid, options))
        console.print(Segments(segments), crop=False, soft_wrap=True, end="")


def _held(text: str) -> str:
    return ARROW[0].sub(ARROW[1], text.replace(*HELD))


def _released(text: str) -> str:
    return text.replace(*HELD[::-1]).replace(ARROW[1], " ")


def _least(column: doc.Column, title: Sequence[str], texts: Sequence[str], natural: int) -> int:
    """Return the minimum width of a column. Texts can wrap at blanks and within long words; numbers cannot."""
    if column.numeric:
        return natural
    words = [word for text in (*title, *texts) for word in text.split(" ")]
    return min(max(map(cell_len, words)), LABEL_WIDTH)


def _pieces(table: doc.Table, widths: Sequence[int], room: int) -> list[range]:
    """Return the columns of each piece of a table, without the key columns, which every piece repeats."""
    keys = sum(widths[: table.keys]) + GAP * (table.keys - 1)
    packed = pack([GAP + width for width in widths[table.keys :]], room - keys)
    return [range(piece.start + table.keys, piece.stop + table.keys) for piece in packed]


def _widths(columns: Sequence[_Sizes], room: int, console: Console) -> list[int]:
    """Return the width of each column of a piece.

    Free space widens columns to their natural width, either from left to right or starting with those that need the
    least, whichever breaks cells into fewer lines.
    """
    places = range(len(columns))
    orders = (places, sorted(places, key=lambda i: columns[i].natural - columns[i].least))
    return min(
        (_widened(columns, room, order) for order in orders), key=lambda widths: _breaks(columns, widths, console)
    )


def _widened(columns: Sequence[_Sizes], room: int, order: Sequence[int]) -> list[int]:
    widths = [column.least for column in columns]
    left = room - sum(widths) - GAP * (len(columns) - 1)
    for i in order:
        more = max(0, min(columns[i].natural - columns[i].least, left))
        widths[i] += more
        left -= more
    return widths


def _breaks(columns: Sequence[_Sizes], widths: Sequence[int], console: Console) -> int:
    """Return the number of line breaks in all cells if they are wrapped at these widths."""
    return sum(
        len(Text(text).wrap(console, width, overflow="fold")) - 1
        for column, width in zip(columns, widths, strict=True)
        for text in column.texts
        if cell_len(text) > width
    )


def _grid(
    table: doc.Table,
    chosen: Sequence[int],
    titles: Sequence[Sequence[str]],
    texts: Sequence[Sequence[str]],
    widths: Sequence[int],
) -> Grid:
    # SIMPLE_HEAD draws one blank between columns; the padding makes it two.
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    height = max(len(titles[i]) for i in chosen)
    for i, width in zip(chosen, widths, strict=True):
        title = Text("\n" * (height - len(titles[i])) + "\n".join(titles[i]))
        if table.columns[i].numeric:
            grid.add_column(title, justify="right", no_wrap=True, width=width)
        else:
            grid.add_column(title, overflow="fold", width=width)
    for n, row in enumerate(table.rows):
        grid.add_row(*(Text(texts[i][n], style=STYLES[row[i].tone]) for i in chosen))
    return grid
