"""A figure: panels with drawing functions, a caption and alternative text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optbench.report.figures.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_WIDTH = 4.6
"""Maximum width of a panel, in inches. A phone would shrink a wider panel until its text is illegible."""


@dataclass(frozen=True)
class Panel:
    """One drawing with its own axes. Sizes are in inches.

    draw: function that draws on the axes in the style of `style.STYLE`, and sets limits, scales, ticks and names.
    height: the height without the legend.
    series: the series named in a legend above the axes, or in the title if there is only one.
    lines: whether the legend shows lines in addition to markers.
    scales: the axes that have a grid and ticks; other axes have only tick labels.
    beside: the width of the space to the right of the axes; `draw` fills this space.
    below: panels under this one. Their axes are aligned with the axes of this one, so that they can share the x axis.
    """

    draw: Callable[[Axes], None]
    width: float
    height: float
    title: str = ""
    series: Sequence[Series] = ()
    lines: bool = True
    scales: Literal["xy", "x", "y", ""] = "xy"
    beside: float = 0.0
    below: tuple[Panel, ...] = ()

    def __post_init__(self) -> None:
        assert 0 < self.width <= MAX_WIDTH, self.width
        assert all(panel.width == self.width and not panel.below for panel in self.below)
        assert self.height > 0, self.height

    @property
    def heading(self) -> str:
        """The title, followed by the name of the series if there is only one."""
        names = [series.label for series in self.series] if len(self.series) == 1 else []
        return ", ".join([self.title] * bool(self.title) + names)


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    name: a file stem that is unique in a report, e.g. `final-accuracy_permuted-mnist`.
    caption: what is shown, for how many seeds, and what is left out.
    alt: one sentence with the main numbers, for readers who cannot see the figure.
    """

    name: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        assert self.panels, self.name
