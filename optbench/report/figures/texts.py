"""Collections of texts as one artist, and the sizes of texts.

matplotlib has collections of lines and patches only. Whenever a matplotlib text is measured or drawn, its line breaks,
rotation and mathematics are processed again. Tick labels and the numbers in a heat map do not need this.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from matplotlib.transforms import Transform

from optbench.report.figures.style import FONT, INK

ASCENT, DESCENT, MIDDLE = 0.76, 0.24, 0.365
"""Ascent, descent and half the cap height of the font, relative to its size."""

Anchor: TypeAlias = Literal["left", "center", "right"]
Box: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right and top."""


@dataclass(frozen=True)
class Label:
    """One line of text.

    x, y: position of the end or centre that `anchor` names, at half the cap height.
    size: font size, in points.
    upright: whether the text reads upwards.
    """

    x: float
    y: float
    text: str
    size: float
    anchor: Anchor = "center"
    colour: str = INK
    upright: bool = False

    @property
    def start(self) -> float:
        """The position at which the text starts, in points from the anchor."""
        return -{"left": 0.0, "center": 0.5, "right": 1.0}[self.anchor] * width(self.text, self.size)

    @property
    def box(self) -> Box:
        """The bounding box, assuming that x and y are in points."""
        end = self.start + width(self.text, self.size)
        below, above = (MIDDLE + DESCENT) * self.size, (ASCENT - MIDDLE) * self.size
        if self.upright:
            return self.x - above, self.y + self.start, self.x + below, self.y + end
        return self.x + self.start, self.y - below, self.x + end, self.y + above


class Labels(Artist):
    """Labels in the coordinates of a transform, drawn above everything else."""

    def __init__(self, labels: Sequence[Label], transform: Transform) -> None:
        super().__init__()
        self.labels = [label for label in labels if label.text]
        self.set_transform(transform)
        self.set_zorder(4)

    def draw(self, renderer: RendererBase) -> None:
        """Draw every label; called by matplotlib."""
        if not self.labels:
            return
        point = renderer.points_to_pixels(1.0)
        height = renderer.get_canvas_width_height()[1]
        places = np.asarray(self.get_transform().transform([(label.x, label.y) for label in self.labels]))
        # SVG output uses this object to anchor texts, so that their position is also right in the page's font.
        anchor = Text(rotation_mode="anchor")
        context = renderer.new_gc()
        renderer.open_group("labels")
        for label, x, y in zip(self.labels, *places.T.tolist(), strict=True):
            start, lower = label.start * point, MIDDLE * label.size * point
            x, y = (x + lower, y) if label.upright else (x, y - lower)
            anchor.set_x(x)
            anchor.set_y(y)
            anchor.set_horizontalalignment(label.anchor)
            x, y = (x, y + start) if label.upright else (x + start, y)
            y = height - y if renderer.flipy() else y
            angle = 90.0 if label.upright else 0.0
            context.set_foreground(label.colour)
            renderer.draw_text(context, x, y, label.text, _font(label.size), angle, mtext=anchor)
        renderer.close_group("labels")
        context.restore()


@functools.cache
def width(text: str, size: float) -> float:
    """Return the width of a text in points."""
    return float(TextToPath().get_text_width_height_descent(text, _font(size), False)[0])


def cut(text: str, size: float, room: float) -> str:
    """Truncate a text to a width in points."""
    room += 1e-6  # an exact fit may be off by rounding
    if width(text, size) <= room:
        return text
    shorter = (f"{text[:count]}…" for count in range(len(text) - 1, 0, -1))
    return next((one for one in shorter if width(one, size) <= room), "…")


@functools.cache
def _font(size: float) -> FontProperties:
    return FontProperties(family=FONT, size=size)
