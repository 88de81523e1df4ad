"""A report as a document: what is said, before any format decides how it looks.

`content` and `comparison` build documents; `terminal`, `markdown`, `html` and `latex` render them. A document holds
finished text: numbers are formatted here once, so that every format shows the same digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Format = Literal["terminal", "markdown", "html", "latex", "csv", "json"]
Tone = Literal["plain", "quiet", "warning", "good", "bad"]
"""`quiet`: a footnote; `warning`: must not be overlooked; `good`, `bad`: the verdict for or against."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Column:
    """title: may have one line break, for a narrow column. numeric: aligned to the right and never broken."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Heading:
    """level: 1 a run or comparison (the title of the document is level 0), 2 an experiment and model."""

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
class Code:
    """Commands that a reader may copy, one a line."""

    text: str


@dataclass(frozen=True)
class Table:
    """keys: so many columns at the left name a row; a table too wide for its place is cut after columns, and every
    piece begins with these."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    keys: int = 1

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption
        assert 0 < self.keys <= len(self.columns), self.caption


@dataclass(frozen=True)
class Illustration:
    """A figure. panels: SVG elements, side by side where there is room, else one below the other; they have no style
    sheet, no script, and no id that another has, and their ink is `currentColor` (`figures.to_svg`).

    alt: what is to be seen, in a sentence, for who cannot see it.
    files: its file in each format that was written, by suffix (`svg`, `png`, `pdf`), as a path from the document.
    """

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """Details that most readers skip: closed at first where the format can, left out on a terminal."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Only:
    """A block that only these formats show."""

    formats: tuple[Format, ...]
    block: Block


Block: TypeAlias = Heading | Paragraph | Items | Code | Table | Illustration | Fold | Only


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]
