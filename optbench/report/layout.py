"""Functions shared by the renderers: removing control characters, and distributing columns over pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence

from optbench.errors import CONTROL
from optbench.report.document import Column

GAP = 2
"""Number of blanks between two columns."""


def one_line(text: str) -> str:
    """Return `text` with every sequence of blanks, line breaks and control characters replaced by one blank."""
    return re.sub(" {2,}", " ", CONTROL.sub(" ", text)).strip()


def title_lines(column: Column) -> list[str]:
    """Return the lines of a column's title, without empty lines at the beginning."""
    return [one_line(line) for line in column.title.lstrip("\n").split("\n")]


def code_lines(text: str) -> list[str]:
    """Return the lines of a `Commands` block, with control characters replaced by blanks."""
    return [CONTROL.sub(" ", line).rstrip() for line in text.strip("\n").split("\n")]


def pack(widths: Sequence[int], room: int) -> list[range]:
    """Split columns, in order, into as few pieces of at most `room` as possible.

    The pieces have nearly equal numbers of columns if they then fit.

    A column wider than `room` gets its own piece. If there are no columns, there is one empty piece.
    """
    greedy: list[range] = [range(0)]
    free = room
    for i, width in enumerate(widths):
        if greedy[-1] and width > free:
            greedy.append(range(i, i))
            free = room
        greedy[-1] = range(greedy[-1].start, i + 1)
        free -= width
    # Pieces of three and two columns are easier to read than pieces of four and one.
    share, more = divmod(len(widths), len(greedy))
    even = [range(i * share + min(i, more), (i + 1) * share + min(i + 1, more)) for i in range(len(greedy))]
    return even if all(sum(widths[i] for i in piece) <= room for piece in even) else greedy
