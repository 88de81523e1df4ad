"""A report as a document: its content, independent of any format.

`run_report` and `comparison_report` build documents; `formats` render them. Text is final: numbers are formatted
once, so that every format shows the same digits. Data for programs are included as `Records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role = Literal["opening", "closing", "outline", "minor", "chart", "numbers", "details"]
"""The role of a block. Each format includes the blocks of certain roles.

opening: findings, for pages that are read from the top.
closing: the same findings, for formats that show them last, such as a terminal.
outline: headings that the captions below them repeat.
minor: less important tables.
chart: numbers drawn in characters.
numbers: numbers that a chart or a figure also shows.
details: the statistics of every metric.
"""
Tone = Literal["plain", "quiet", "warning", "good", "bad"]
"""`plain`: ordinary text; `quiet`: a footnote; `warning`: an important remark; `good`, `bad`: a favourable or an
unfavourable verdict."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    tone: Tone = "plain"


def seeds_cell(number: int, planned: int) -> Cell:
    """Return a cell with the number of seeds: `5`, or the warning `4 of 5` if some planned seeds are missing."""
    return Cell(str(number)) if number == planned else Cell(f"{number} of {planned}", "warning")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    title: the text above the column, which may contain one line break to keep the column narrow.
    numeric: whether cells are right-aligned and never wrapped.
    """

    title: str
    numeric: bool = True


def columns(*titles: str, texts: int = 0) -> tuple[Column, ...]:
    """Return columns with these titles; the first `texts` hold text, the others numbers."""
    return tuple(Column(title, numeric=i >= texts) for i, title in enumerate(titles))


@dataclass(frozen=True)
class Heading:
    """A heading.

    level: 1 for a run or comparison (the document's title has level 0), 2 for an experiment and model.
    """

    text: str
    level: int = 1


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Items:
    """A list of short statements."""

    items: tuple[str, ...]
    tone: Tone = "plain"


@dataclass(frozen=True)
class Commands:
    """Commands to copy, one per line."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    keys: number of leading columns that name a row. A table that is too wide is split by columns, and every piece
    repeats these leading columns.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    keys: int = 1

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption
        assert 0 < self.keys <= len(self.columns), self.caption


@dataclass(frozen=True)
class Illustration:
    """A figure.

    panels: SVG elements made by `figures.to_svg`, shown side by side if there is room and otherwise stacked.
    alt: a sentence that describes the figure for readers who cannot see it.
    files: by suffix (`svg`, `png`, `pdf`), the path of each file written, relative to the document.
    """

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """Details that most readers skip: collapsed if the format supports it, left out on a terminal.

    instead: text shown on a terminal.
    """

    title: str
    blocks: tuple[Block, ...]
    instead: str = ""


@dataclass(frozen=True)
class Part:
    """A block shown only by formats that include its role."""

    role: Role
    block: Block


@dataclass(frozen=True)
class Records:
    """Data for programs; formats for people omit them.

    key: the key in JSON.
    tree: function that returns the value in JSON.
    lines: function that returns the records in csv; None if the data are not part of csv.
    """

    key: str
    tree: Callable[[], Any]
    lines: Callable[[], Iterable[Record]] | None = None


Record: TypeAlias = Mapping[str, Any]
Shown: TypeAlias = Heading | Paragraph | Items | Commands | Table | Illustration | Fold
"""A block that formats for people render."""
Block: TypeAlias = Shown | Part | Records


@dataclass(frozen=True)
class Report:
    """A titled document made of blocks.

    name: the name of the report's format in JSON.
    columns: the columns of the report's records in csv.
    """

    title: str
    blocks: tuple[Block, ...]
    name: str = ""
    columns: tuple[str, ...] = ()

    @property
    def records(self) -> list[Records]:
        return [block for block in self.blocks if isinstance(block, Records)]


def listed(key: str, lines: Callable[[], Iterable[Record]]) -> Records:
    """Return records that are the same in JSON and in csv."""
    return Records(key, lambda: list(lines()), lines)


def shown(blocks: Sequence[Block], roles: Set[Role]) -> Iterator[Shown]:
    """Yield the blocks that a format with these roles shows; records are never shown."""
    for block in blocks:
        match block:
            case Part(role, inner):
                if role in roles:
                    yield from shown([inner], roles)
            case Records():
                pass
            case _:
                yield block
