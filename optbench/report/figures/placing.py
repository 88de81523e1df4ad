"""Placement of labels next to points and at the ends of lines, with as little overlap as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from optbench.report.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

Point = tuple[float, float]

CHARACTER, LINE = 5.2, 10.0
"""Width of a character and height of a label of size 8, in points."""
CLEAR = 6.0
"""Half the width of a mean's marker."""
SMALL = 2.0
"""Half the width of a seed's marker."""
RINGS = (CLEAR + 1, CLEAR + 12, CLEAR + 26)
DIRECTIONS = ((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.8, 0.9), (-0.8, 0.9), (0.8, -0.9), (-0.8, -0.9))

INDENT = 10.0
"""Gap between the axes and the names of lines; leader lines cross this gap."""
MARGINS = 30.0
"""Total height of a panel's margins above and below its axes."""

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
    """Write a text next to each point, with a line from the text to the point.

    colours: the colour of each text; by default, `INK` for all of them. Other arguments are those of `place_labels`.
    """
    places = place_labels(centres, texts, limits, size, others)
    for text, centre, offset, colour in zip(texts, centres, places, colours or [INK] * len(texts), strict=True):
        arrow = {**LEADER, "color": colour}
        axes.annotate(text, centre, offset, textcoords="offset points", arrowprops=arrow, color=colour, **LABEL)


@dataclass(frozen=True)
class Ending:
    """The end of a line, in the units of the axes, with the name and colour of the line."""

    text: str
    place: Point
    colour: str
    alpha: float = 1.0


def name_ends(axes: Axes, ends: Sequence[Ending], limits: tuple[float, float], height: float, room: float) -> None:
    """Write the name of each line to the right of the axes, as close to the end of the line as possible.

    limits: limits of the y axis.
    height: height of the panel, in points.
    room: width to the right of the axes, in points.
    """
    from optbench.report.figures.texts import cut

    low, high = limits
    places = spaced([(end.place[1] - low) / (high - low) for end in ends], LINE / (height - MARGINS))
    for end, y in zip(ends, places, strict=True):
        name = cut(end.text, LABEL["fontsize"], room - INDENT)
        look = {"color": end.colour, "alpha": end.alpha}
        style: dict[str, Any] = {**LABEL, "ha": "left", **look}
        arrow = {**LEADER, **look, "shrinkA": 2, "shrinkB": 0, "relpos": (0.0, 0.5)}
        axes.annotate(name, end.place, (1.0, y), textcoords=_indented(axes), arrowprops=arrow, **style)


def spaced(places: Sequence[float], gap: float) -> list[float]:
    """Move positions in [0, 1] so that they are at least `gap` apart, with the smallest sum of squared moves.

    The order of the positions does not change. If there is not enough space, they are spread evenly.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, 1 / max(1, len(places) - 1))
    # Once gaps are subtracted, positions must not decrease; neighbours that do are pooled (isotonic regression).
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([places[i] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [fmean(pool) for pool in pools for _ in pool]
    most = 1 - gap * (len(places) - 1)
    found = dict(zip(order, (min(max(at, 0.0), most) + rank * gap for rank, at in enumerate(level)), strict=True))
    return [found[i] for i in range(len(places))]


def place_labels(
    centres: Sequence[Point],
    texts: Sequence[str],
    limits: Sequence[tuple[float, float]],
    size: tuple[float, float],
    others: Sequence[Point] = (),
) -> list[Point]:
    """Return the offset, in typographic points, of each label's centre from the data point that it names.

    Each label gets the nearest free position on three rings around its data point or, if none is free, the position
    with the least overlap.

    centres: data points, in the units of the axes.
    limits: limits of the x and the y axis.
    size: size of the axes, in typographic points.
    others: further data points, with smaller markers, to avoid if possible.
    """
    spots = [_place(centre, limits, size) for centre in centres]
    taken = [_box(spot, CLEAR, CLEAR) for spot in spots]
    taken += [_box(_place(other, limits, size), SMALL, SMALL) for other in others]
    offsets: list[Point] = []
    for (x, y), text in zip(spots, texts, strict=True):
        half = CHARACTER * len(text) / 2
        around = [(dx * (half + ring), dy * (LINE / 2 + ring)) for ring in RINGS for dx, dy in DIRECTIONS]
        boxes = [_box((x + dx, y + dy), half, LINE / 2) for dx, dy in around]
        # Positions outside the axes are a last resort.
        covered = [sum(_overlap(box, other) for other in taken) + 3 * _outside(box, size) for box in boxes]
        best = min(range(len(boxes)), key=lambda i: covered[i])
        taken.append(boxes[best])
        offsets.append(around[best])
    return offsets


def _indented(axes: Axes) -> Transform:
    from matplotlib.transforms import ScaledTranslation

    return axes.transAxes + ScaledTranslation(INDENT / 72, 0, axes.figure.dpi_scale_trans)


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
