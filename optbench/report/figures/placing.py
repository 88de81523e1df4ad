"""Labels beside points, where they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optbench.report.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]

CHARACTER, LINE = 5.2, 10.0
"""Points, of a label of size 8."""
CLEAR = 6.0
"""Half the width that a mean's marker takes."""
SMALL = 2.0
"""Likewise of a seed's."""
RINGS = (CLEAR + 1, CLEAR + 12, CLEAR + 26)
DIRECTIONS = ((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.8, 0.9), (-0.8, 0.9), (0.8, -0.9), (-0.8, -0.9))

LEADER = {"arrowstyle": "-", "linewidth": 0.6, "color": INK, "shrinkA": 0, "shrinkB": 3}
LABEL: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}


def name_points(
    axes: Axes,
    centres: Sequence[Point],
    texts: Sequence[str],
    limits: Sequence[tuple[float, float]],
    size: tuple[float, float],
    others: Sequence[Point] = (),
    colours: Sequence[str] = (),
) -> None:
    """Write a text next to each point, with a line to it; arguments as `place_labels` has them.

    colours: of the texts, where several series have texts.
    """
    places = place_labels(centres, texts, limits, size, others)
    for text, centre, offset, colour in zip(texts, centres, places, colours or [INK] * len(texts), strict=True):
        arrow = {**LEADER, "color": colour}
        axes.annotate(text, centre, offset, textcoords="offset points", arrowprops=arrow, color=colour, **LABEL)


def place_labels(
    centres: Sequence[Point],
    texts: Sequence[str],
    limits: Sequence[tuple[float, float]],
    size: tuple[float, float],
    others: Sequence[Point] = (),
) -> list[Point]:
    """The offset of the middle of each label from its point, in typographic points.

    centres: in the units of the axes. limits: of the x and the y axis. size: of the axes, in typographic points.
    others: smaller points, in the units of the axes, that are better not covered.
    Of places on three rings around a point, the nearest one that is free; where none is, the one that covers least.
    """
    spots = [_place(centre, limits, size) for centre in centres]
    taken = [_box(spot, CLEAR, CLEAR) for spot in spots]
    taken += [_box(_place(other, limits, size), SMALL, SMALL) for other in others]
    offsets: list[Point] = []
    for (x, y), text in zip(spots, texts, strict=True):
        half = CHARACTER * len(text) / 2
        around = [(dx * (half + ring), dy * (LINE / 2 + ring)) for ring in RINGS for dx, dy in DIRECTIONS]
        boxes = [_box((x + dx, y + dy), half, LINE / 2) for dx, dy in around]
        # A label may leave the axes only where all else is worse.
        covered = [sum(_overlap(box, other) for other in taken) + 3 * _outside(box, size) for box in boxes]
        best = min(range(len(boxes)), key=lambda i: covered[i])
        taken.append(boxes[best])
        offsets.append(around[best])
    return offsets


def _place(point: Point, limits: Sequence[tuple[float, float]], size: tuple[float, float]) -> Point:
    x, y = ((v - low) / (high - low) * room for v, (low, high), room in zip(point, limits, size, strict=True))
    return x, y


def _box(centre: Point, half_width: float, half_height: float) -> tuple[float, ...]:
    x, y = centre
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: tuple[float, ...], size: tuple[float, float]) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, (0.0, 0.0, *size))
