"""A report as a document: what is said, before any format decides how it looks.

`run_report` and `comparison_report` build documents; `formats` render them. Text is finished: numbers are formatted
once, so that every format shows the same digits. What programs read stands next to it, as `Records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Role = Literal["opening", "closing", "outline", "minor", "chart", "numbers", "details"]
"""What a block holds, for formats to include or not. `opening`: what was found, in a page that is read from the top;
`closing`: the same, at the end, which a terminal shows first; `outline`: headings that the captions below them repeat;
`minor`: what matters least; `chart`: numbers drawn in characters; `numbers`: the same, where a figure draws them;
`details`: every measure there is."""
Tone = Literal["plain", "quiet", "warning", "good", "bad"]
"""`quiet`: a footnote; `warning`: must not be overlooked; `good`, `bad`: the verdict for or against."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    tone: Tone = "plain"


def seeds_cell(number: int, planned: int) -> Cell:
    """`5`; `4 of 5`, as a warning, where it is not all that were planned."""
    return Cell(str(number)) if number == planned else Cell(f"{number} of {planned}", "warning")


@dataclass(frozen=True)
class Column:
    """title: may have one line break, for a narrow column. numeric: aligned to the right and never broken."""

    title: str
    numeric: bool = True


def columns(*titles: str, texts: int = 0) -> tuple[Column, ...]:
    """Columns with these titles; the first `texts` of them hold text, the others numbers."""
    return tuple(Column(title, numeric=i >= texts) for i, title in enumerate(titles))


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
class Commands:
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
    """Details that most readers skip: closed at first where the format can, left out on a terminal.

    instead: what a terminal says in its place.
    """

    title: str
    blocks: tuple[Block, ...]
    instead: str = ""


@dataclass(frozen=True)
class Part:
    """A block that only the formats show that include its role."""

    role: Role
    block: Block


@dataclass(frozen=True)
class Records:
    """What programs read; formats for people leave it out.

    key: where `tree()` stands in JSON. lines: its records in csv, by column.
    """

    key: str
    tree: Callable[[], Any]
    lines: Callable[[], Iterable[Record]] | None = None


Record: TypeAlias = Mapping[str, Any]
Shown: TypeAlias = Heading | Paragraph | Items | Commands | Table | Illustration | Fold
"""What formats for people render."""
Block: TypeAlias = Shown | Part | Records


@dataclass(frozen=True)
class Report:
    """name, columns: of its records: what JSON calls itself, and what csv begins with."""

    title: str
    blocks: tuple[Block, ...]
    name: str = ""
    columns: tuple[str, ...] = ()

    @property
    def records(self) -> list[Records]:
        return [block for block in self.blocks if isinstance(block, Records)]


def listed(key: str, lines: Callable[[], Iterable[Record]]) -> Records:
    """Records that are the same in JSON and csv."""
    return Records(key, lambda: list(lines()), lines)


def shown(blocks: Sequence[Block], roles: Set[Role]) -> Iterator[Shown]:
    """The blocks that a format shows which includes `roles`."""
    for block in blocks:
        match block:
            case Part(role, inner):
                if role in roles:
                    yield from shown([inner], roles)
            case Records():
                pass
            case _:
                yield block
