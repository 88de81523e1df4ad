"""What a figure is: panels that draw themselves, and the words that go with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_WIDTH = 4.6
"""Inches. A wider panel would have to be shrunk on a phone until its text cannot be read."""


@dataclass(frozen=True)
class Panel:
    """One drawing with axes of its own. draw: onto empty axes, in the style of `style.STYLE`. Sizes in inches."""

    draw: Callable[[Axes], None]
    width: float
    height: float

    def __post_init__(self) -> None:
        assert 0 < self.width <= MAX_WIDTH, self.width
        assert self.height > 0, self.height


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    name: a file stem, unique in a report: `final-accuracy_permuted-mnist`.
    caption: what is shown, of how many seeds, and what is left out.
    alt: one sentence with the main numbers, for who cannot see it.
    """

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        assert self.panels, self.name
