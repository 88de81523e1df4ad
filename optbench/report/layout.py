"""What every rendering does with texts and columns: no control characters, and columns shared out over pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence

from optbench.errors import CONTROL
from optbench.report.document import Column

GAP = 2
"""Blanks between two columns."""


def one_line(text: str) -> str:
    """`text` with every run of blanks, line breaks and control characters as one blank."""
    return re.sub(" {2,}", " ", CONTROL.sub(" ", text)).strip()


def title_lines(column: Column) -> list[str]:
    """The lines of a column's title, without an empty first one."""
    return [one_line(line) for line in column.title.lstrip("\n").split("\n")]


def code_lines(text: str) -> list[str]:
    """The lines of a `Commands` block; control characters are blanks."""
    return [CONTROL.sub(" ", line).rstrip() for line in text.strip("\n").split("\n")]


def pack(widths: Sequence[int], room: int) -> list[range]:
    """Share columns out, in order, over as few pieces as it takes for each to fit into `room`; evenly where that fits.

    A column wider than `room` has a piece of its own. No columns make one empty piece.
    """
    greedy: list[range] = [range(0)]
    free = room
    for i, width in enumerate(widths):
        if greedy[-1] and width > free:
            greedy.append(range(i, i))
            free = room
        greedy[-1] = range(greedy[-1].start, i + 1)
        free -= width
    # Three columns and two read better than four and one.
    share, more = divmod(len(widths), len(greedy))
    even = [range(i * share + min(i, more), (i + 1) * share + min(i + 1, more)) for i in range(len(greedy))]
    return even if all(sum(widths[i] for i in piece) <= room for piece in even) else greedy
