"""The readings of a claim as a specification curve (Simonsohn, Simmons & Nelson 2020).

The effects of the readings are sorted, and marks below each effect show the metric, layer and data of its reading.
Readings have different units, so the effect is the difference divided by the absolute median of the claim's right side.
Unlike a rank correlation, which would be 1 for almost every reading with few pairs, it has a size and an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optbench.counting import count
from optbench.report.figures import style
from optbench.report.figures.drawing import MAX_WIDTH, Figure, Panel
from optbench.report.figures.series import figure_name
from optbench.report.numbers import words
from optbench.report.readings import default_layer, part_label, reading_name, summary
from optbench.stats.arms import Arm
from optbench.stats.claims import ClaimPart, JudgedClaim
from optbench.stats.readings import JudgedReading, Says
from optbench.stats.results import Results
from optbench.suite.sides import side_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE, PAD, ROW, GAP = 1.9, 0.05, 0.155, 0.09
"""In inches: height of the curve, its margin at both ends, height of a row of marks, space before a group of rows."""
ROW_NAME, FOLDED = 122.0, 25
"""Maximum length of a name, in points, and of a name that has its settings on the same line, in characters."""
FAR = 2.0
"""If effects exceed this (200%), the axis is linear around 0 and logarithmic far from 0."""
BEND = 0.2
INSIDE = 0.9
"""Minimum fraction of interval ends that lie within the axis."""
MORE = 1.5
"""Maximum factor by which the axis is extended to include all interval ends."""
MOST_PARTS = 12
"""Maximum number of parts of a claim that are drawn."""
MANY = 6
"""Maximum number of omitted readings that are named; if there are more, they are only counted."""
LOOKS: dict[Says, tuple[str, str, bool]] = {
    Says.HIGHER: (style.PALETTE[3], "^", True),
    Says.LOWER: (style.PALETTE[0], "v", True),
    Says.OPEN: (style.PALETTE[6], "o", False),
}
"""Colour and marker for each result of a reading, and whether the marker is filled."""


@dataclass(frozen=True)
class Point:
    """A drawn reading, its effect, and the ends of the effect's 95% interval, `low` and `high`."""

    reading: JudgedReading
    effect: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A row of marks.

    depth, end: the middle and the bottom of the row, in inches below the curve.
    marks: function that returns whether the row has a mark for a reading.
    """

    name: str
    depth: float
    end: float
    marks: Callable[[JudgedReading], bool]


@dataclass(frozen=True)
class Scale:
    """The axis of effects, from `low` to `high`; it is the same in every panel of a claim."""

    low: float
    high: float

    @property
    def bent(self) -> bool:
        return max(abs(self.low), abs(self.high)) > FAR

    def place(self, effect: float) -> float:
        low, high, at = (math.asinh(v / BEND) if self.bent else v for v in (self.low, self.high, effect))
        return PAD + (CURVE - 2 * PAD) * (at - low) / (high - low)

    def cuts(self, point: Point) -> bool:
        """Return whether the interval of a point extends beyond the axis."""
        return point.low < self.low or point.high > self.high

    def ticks(self) -> list[float]:
        """Return round effects within the axis, including 0."""
        from matplotlib.ticker import MaxNLocator

        if not self.bent:
            return [float(v) for v in MaxNLocator(6).tick_values(self.low, self.high) if self.low <= v <= self.high]
        sizes = [m * 10.0**k for k in range(-1, 7) for m in (1, 2, 5)]
        found = [0.0]
        for size in sizes:
            for value in (size, -size):
                apart = min(abs(self.place(value) - self.place(other)) for other in found)
                if self.low <= value <= self.high and apart > 0.17:
                    found.append(value)
        return sorted(found)


def readings(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per claim with readings, with a panel for each part."""
    figures: list[Figure] = []
    for result in results:
        more = [result.run.id] if len(results) > 1 else []
        for judged in result.claims:
            if judged.claim.readings is not None:
                figures += _figure(judged, more, {figure.name for figure in figures})
    return figures


def drawn(part: ClaimPart) -> list[Point]:
    """Return the readings that have an effect with a bounded interval, sorted by effect."""
    found = ((reading, reading.relative) for reading in part.readings)
    points = [Point(reading, *relative) for reading, relative in found if relative is not None]
    return sorted(points, key=lambda point: point.effect)


def _figure(judged: JudgedClaim, more: Sequence[str], used: Set[str]) -> Iterator[Figure]:
    found = [(part, points) for part in judged.parts if (points := drawn(part))]
    parts = found[:MOST_PARTS]
    if not parts:
        return
    every = [point for _, points in parts for point in points]
    scale = _scale(every)
    rows = list(_rows(judged))
    names = (figure_name("readings", judged.name, *more, *n) for n in ([], *([str(i)] for i in range(2, 10**6))))
    left, right = side_text(judged.claim.left), side_text(judged.claim.right)
    sentences = [
        f"Every reading of the claim, sorted by its effect: {left} minus {right}, as a percentage of "
        f"the median of {right}, with the 95% interval of the signed-rank test. The marks below an effect show the "
        "metric, layer and data of its reading.",
        "A triangle points up or down if the uncorrected interval excludes 0; a circle is an open reading. The band is "
        "the primary reading, which gives the verdict. The readings are descriptive: they are correlated, and there is "
        "no correction for their number.",
        f"{_seeds(every)}.",
        *(["The axis is linear around 0 and logarithmic far from it."] if scale.bent else []),
        *(["Intervals that extend beyond the axis are cut off."] if any(map(scale.cuts, every)) else []),
        *([f"Only the first {MOST_PARTS} of {len(found)} parts are shown."] if len(found) > MOST_PARTS else []),
        *_left_out([part for part, _ in parts]),
    ]
    yield Figure(
        name=next(name for name in names if name not in used),
        title=f"{': '.join([*more, judged.name])}: every reading",
        caption=" ".join(sentences),
        alt="; ".join(f"{part_label(part)}: {summary(part.readings)}" for part, _ in parts) + ".",
        panels=tuple(_panel(part, points, rows, scale) for part, points in parts),
    )


def _seeds(points: Sequence[Point]) -> str:
    """Format the number of seeds: `8 seeds`, or `6 to 8 seeds` if some readings have no value on some seeds."""
    numbers = sorted({point.reading.result.n for point in points})
    most = count(numbers[-1], "seed")
    return most if len(numbers) == 1 else f"{numbers[0]} to {most}"


def _scale(points: Sequence[Point]) -> Scale:
    """Return an axis that includes every effect but may cut off intervals so wide that they would compress the rest."""
    ends = sorted(abs(end) for point in points for end in (point.low, point.high))
    far = max(ends[math.ceil(INSIDE * len(ends)) - 1], *(abs(point.effect) for point in points))
    far = ends[-1] if ends[-1] <= MORE * far else far
    seen = [max(-far, min(far, end)) for point in points for end in (point.low, point.high)]
    return Scale(*style.limits([0.0, *seen, *(point.effect for point in points)]))


def _left_out(parts: Sequence[ClaimPart]) -> Iterator[str]:
    """Yield a sentence about the readings that are not drawn, if there are any."""
    found = []
    for part in parts:
        shown = {point.reading.cell for point in drawn(part)}
        names = [reading_name(reading.cell) for reading in part.readings if reading.cell not in shown]
        if names:
            which = ", ".join(names) if len(names) <= MANY else count(len(names), "reading")
            found.append(f"{which} of {part_label(part)}")
    if found:
        yield f"Not drawn because there is no bounded interval or the right median is 0: {'; '.join(found)}."


def _rows(judged: JudgedClaim) -> Iterator[Row]:
    """Yield a row for each metric and, where there are several, for each layer and each kind of data."""
    assert judged.claim.readings is not None
    cells = judged.claim.readings.cells
    depth = 0.0
    named: dict[str, Callable[[str], str]] = {
        "metric": words,
        "layer": lambda layer: layer or default_layer(judged.parts[0].readings),
        "data": {"pooled": "all tasks pooled", "last": "last task"}.__getitem__,
    }
    for key, text in named.items():
        choices = list(dict.fromkeys(getattr(cell, key) for cell in cells))
        if key != "metric" and len(choices) < 2:
            continue
        depth += GAP
        for choice in choices:
            name = _folded(text(choice))
            height = ROW * (1 + name.count("\n"))
            depth += height

            def marks(reading: JudgedReading, key: str = key, choice: str = choice) -> bool:
                return bool(getattr(reading.cell, key) == choice)

            yield Row(name, depth - height / 2, depth, marks)


def _folded(name: str) -> str:
    """Return a metric's name, with its settings on a second line if both do not fit on one line."""
    head, _, settings = name.rpartition(" ")
    return f"{head}\n{settings}" if len(name) > FOLDED and "=" in settings else name


def _panel(part: ClaimPart, points: Sequence[Point], rows: Sequence[Row], scale: Scale) -> Panel:
    bottom = -rows[-1].end
    right = part.right.label if isinstance(part.right, Arm) else f"{part.right:g}"

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FixedFormatter, FixedLocator

        from optbench.report.figures.texts import cut

        for x, point in enumerate(points):
            if point.reading.primary:
                axes.axvspan(x - 0.5, x + 0.5, color=style.INK, alpha=0.12, linewidth=0, label="_primary")
        axes.axhline(scale.place(0.0), color=style.INK, linewidth=0.8, label="_zero")
        for says, (colour, marker, filled) in LOOKS.items():
            chosen = [(x, point) for x, point in enumerate(points) if point.reading.says is says]
            _curve(axes, chosen, scale, style.Look(colour, marker, filled, "solid"), min(4.4, 180 / len(points)))
            marked = [(x, -row.depth) for x, point in chosen for row in rows if row.marks(point.reading)]
            if marked:
                look = style.Look(colour, "s", True, "solid").marks | {"markersize": min(3.6, 150 / len(points))}
                axes.plot(*np.transpose(marked), linestyle="none", **look, label="_marks")
        ticks = scale.ticks()
        axes.yaxis.set_major_locator(FixedLocator([*map(scale.place, ticks), *(-row.depth for row in rows)]))
        names = [
            *(f"{100 * tick:{'+' if tick else ''}g}%" for tick in ticks),
            *("\n".join(cut(line, 8.5, ROW_NAME) for line in row.name.split("\n")) for row in rows),
        ]
        axes.yaxis.set_major_formatter(FixedFormatter(names))
        axes.xaxis.set_major_locator(FixedLocator([]))
        axes.set_xlim(-0.8, len(points) - 0.2)
        axes.set_ylim(bottom, CURVE)
        axes.set_xlabel(f"{count(len(points), 'reading')}, by effect")

    title = f"{part.model}: {part.left.label} against {right}"
    return Panel(draw, MAX_WIDTH, CURVE - bottom + 0.5, title, scales="y")


def _curve(axes: Axes, chosen: Sequence[tuple[int, Point]], scale: Scale, look: style.Look, size: float) -> None:
    """Draw the effects of readings that have the same result, and their intervals."""
    if not chosen:
        return
    xs = [x for x, _ in chosen]
    low, middle, high = (
        [scale.place(min(max(value, scale.low), scale.high)) for value in values]
        for values in zip(*((point.low, point.effect, point.high) for _, point in chosen), strict=True)
    )
    axes.vlines(xs, low, high, color=look.colour, linewidth=1.0, alpha=0.7, label="_intervals")
    axes.plot(xs, middle, linestyle="none", **look.marks | {"markersize": size}, label="_effects")
