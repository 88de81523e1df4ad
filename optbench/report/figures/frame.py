"""The frame of a panel: grid, axes, ticks, names, title and legend, laid out according to the sizes of their texts.

matplotlib can draw the frame as well, but it creates six objects per tick and measures them three times for a layout.
This would take most of the time needed to render a page. Scales, limits, ticks and names are set on matplotlib's axes
and read from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Affine2D, Transform

from optbench.report.figures.drawing import Panel
from optbench.report.figures.series import Series, split
from optbench.report.figures.style import AXES, GRID, INK, Which, look
from optbench.report.figures.texts import ASCENT, DESCENT, MIDDLE, Anchor, Box, Label, Labels, cut, width

# All lengths in this module are in points.
TICK_SIZE, NAME_SIZE, TITLE_SIZE, LEGEND_SIZE = 8.5, 9.0, 9.5, 8.5
EDGE = 3.0
"""Padding along the border of a panel."""
TICK, TICK_GAP, NAME_GAP = 2.5, 3.5, 4.0
LINE = 1.2
"""Line spacing, relative to the text size."""
HEADER_GAP, LEGEND_ROW = 6.0, 13.0
HANDLE, HANDLE_GAP, COLUMN_GAP = 15.0, 4.5, 12.0

Ticks = Sequence[tuple[float, str]]
"""Position of each tick, as a fraction of the axis, and its text."""


@dataclass(frozen=True)
class Frame:
    """A placed panel.

    outer, inner: the boxes of the panel and of its axes, in points from the bottom left corner of the canvas.
    """

    panel: Panel
    outer: Box
    inner: Box
    x: Ticks
    y: Ticks
    names: tuple[str, str]


def height(panel: Panel) -> float:
    """Return the height, in points, of the panel with its legend and the panels below it."""
    return 72 * panel.height + LEGEND_ROW * _rows(panel) + sum(map(height, panel.below))


def add_panel(canvas: Canvas, panel: Panel, left: float, bottom: float) -> Frame:
    """Draw `panel` and the panels below it, and return the frame of `panel`.

    left, bottom: the bottom left corner of the area for all these panels.
    """
    top, drawn = bottom + height(panel), []
    for one in (panel, *panel.below):
        axes = canvas.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        one.draw(axes)
        under = top - height(replace(one, below=()))
        drawn.append((axes, _fitted(one, axes, (left, under, left + 72 * one.width, top))))
        top = under
    points = Affine2D().scale(1 / 72) + canvas.dpi_scale_trans
    frames = _aligned(drawn) if panel.below else [frame for _, frame in drawn]
    for frame in frames:
        for line in (*_lines(frame, points), *_handles(frame, points)):
            canvas.add_artist(line)
        canvas.add_artist(Labels(labels(frame), points))
    return frames[0]


def _aligned(drawn: Sequence[tuple[Axes, Frame]]) -> list[Frame]:
    """Align all axes with the rightmost of their left ends and the leftmost of their right ends."""
    x0, x1 = max(frame.inner[0] for _, frame in drawn), min(frame.inner[2] for _, frame in drawn)
    found = []
    for axes, frame in drawn:
        inner = (x0, frame.inner[1], x1, frame.inner[3])
        _place(axes, inner)
        found.append(replace(frame, inner=inner))
    return found


def _fitted(panel: Panel, axes: Axes, outer: Box) -> Frame:
    """Fit the axes into the space that the surrounding texts leave."""
    left, bottom, right, top = outer
    rows = _rows(panel)
    x_name, y_name = axes.get_xlabel(), axes.get_ylabel()
    y0 = bottom + EDGE + (NAME_SIZE + NAME_GAP if x_name else 0.0)
    if not isinstance(axes.xaxis.get_major_formatter(), NullFormatter):
        y0 += TICK_SIZE + _gap(panel, "x")
    y1 = top - EDGE - TICK_SIZE / 2
    if panel.heading or rows:
        y1 = top - EDGE - HEADER_GAP - LEGEND_ROW * rows - (TITLE_SIZE if panel.heading else 0.0)
    # The number of ticks depends on the space; the space for the x axis depends on the ticks of the y axis.
    _place(axes, (left, y0, right, y1))
    y, y_unit = _ticks(axes.yaxis)
    broadest = max((_breadth(text) for _, text in y), default=0.0)
    x0 = left + EDGE + broadest + _gap(panel, "y") + (NAME_SIZE + NAME_GAP if y_name else 0.0)
    x1 = right - EDGE - 72 * panel.beside
    _place(axes, (x0, y0, x1, y1))
    x, x_unit = _ticks(axes.xaxis)
    # The text of the last tick may extend beyond the axes, but not beyond the panel.
    for share, text in x:
        if share > 0 and x0 + share * (x1 - x0) + _breadth(text) / 2 > right - EDGE:
            x1 = x0 + (right - EDGE - _breadth(text) / 2 - x0) / share
    inner = (x0, y0, x1, y1)
    _place(axes, inner)
    return Frame(panel, outer, inner, x, y, (f"{x_name}{x_unit}", f"{y_name}{y_unit}"))


def _place(axes: Axes, box: Box) -> None:
    canvas = axes.get_figure()
    assert canvas is not None
    across, up = 72 * canvas.bbox.width / canvas.dpi, 72 * canvas.bbox.height / canvas.dpi
    left, bottom, right, top = box
    axes.set_position((left / across, bottom / up, (right - left) / across, (top - bottom) / up))


def _ticks(axis: Axis) -> tuple[Ticks, str]:
    """Return the ticks in view, and their common factor or offset as text to append to the name of the axis."""
    low, high = axis.get_transform().transform(axis.get_view_interval()).tolist()
    values, formatter = axis.get_majorticklocs(), axis.get_major_formatter()
    shares = (axis.get_transform().transform(values) - low) / (high - low)
    found = zip(shares.tolist(), formatter.format_ticks(values.tolist()), strict=True)
    unit = formatter.get_offset()
    return [(share, text) for share, text in found if -1e-9 < share < 1 + 1e-9], f" ({unit})" if unit else ""


def _lines(frame: Frame, points: Transform) -> Iterator[Line2D]:
    """Yield the grid and the axes with their ticks, each as one line with gaps; nothing if the panel has no scales."""
    x0, y0, x1, y1 = frame.inner
    gap = (math.nan, math.nan)
    grid, marks = [gap], [(x0, y1), (x0, y0), (x1, y0)]
    if "x" in frame.panel.scales:
        for share, _ in frame.x:
            x = x0 + share * (x1 - x0)
            grid += [(x, y0), (x, y1), gap]
            marks += [gap, (x, y0), (x, y0 - TICK)]
    if "y" in frame.panel.scales:
        for share, _ in frame.y:
            y = y0 + share * (y1 - y0)
            grid += [(x0, y), (x1, y), gap]
            marks += [gap, (x0, y), (x0 - TICK, y)]
    if frame.panel.scales:
        for line, shown in ((grid, GRID), (marks, AXES)):
            xs, ys = zip(*line, strict=True)
            yield Line2D(xs, ys, color=INK, solid_capstyle="butt", transform=points, **shown)


def labels(frame: Frame) -> list[Label]:
    """Return a label for every text of the frame, with positions in points."""
    (left, bottom, right, top), (x0, y0, x1, y1) = frame.outer, frame.inner
    across, up = right - left - 2 * EDGE, top - bottom - 2 * EDGE
    x_name, y_name = (cut(name, NAME_SIZE, room) for name, room in zip(frame.names, (across, up), strict=True))
    made = []
    below, beside = y0 - _gap(frame.panel, "x") - (ASCENT - MIDDLE) * TICK_SIZE, x0 - _gap(frame.panel, "y")
    for share, text in frame.x:
        made += _text(x0 + share * (x1 - x0), below, text, "center")
    for share, text in frame.y:
        made += _text(beside, y0 + share * (y1 - y0), text, "right")
    # centred on their axis, but inside the panel
    middle = _kept((x0 + x1) / 2, left, right, width(x_name, NAME_SIZE) / 2)
    made.append(Label(middle, bottom + EDGE + (DESCENT + MIDDLE) * NAME_SIZE, x_name, NAME_SIZE))
    middle = _kept((y0 + y1) / 2, bottom, top, width(y_name, NAME_SIZE) / 2)
    made.append(Label(left + EDGE + (ASCENT - MIDDLE) * NAME_SIZE, middle, y_name, NAME_SIZE, upright=True))
    title = cut(frame.panel.heading, TITLE_SIZE, across)
    above = y1 + HEADER_GAP + LEGEND_ROW * _rows(frame.panel) + MIDDLE * TITLE_SIZE
    made.append(Label(_start(frame, width(title, TITLE_SIZE)), above, title, TITLE_SIZE, "left"))
    for start, y, series in _legend(frame):
        x = start + HANDLE + HANDLE_GAP
        made.append(Label(x, y, cut(series.label, LEGEND_SIZE, right - EDGE - x), LEGEND_SIZE, "left"))
    return [label for label in made if label.text]


def _text(x: float, y: float, text: str, anchor: Anchor) -> list[Label]:
    """Return a label per line of text: centred vertically on y if the anchor is `right`, else from y downwards."""
    lines = text.split("\n")
    top = y + (LINE * TICK_SIZE * (len(lines) - 1) / 2 if anchor == "right" else 0.0)
    return [Label(x, top - LINE * TICK_SIZE * i, line, TICK_SIZE, anchor) for i, line in enumerate(lines)]


def _gap(panel: Panel, which: Which) -> float:
    """Return the gap between an axis and the texts of its ticks."""
    return TICK_GAP + (TICK if which in panel.scales else 0.0)


def _breadth(text: str) -> float:
    return max(width(line, TICK_SIZE) for line in text.split("\n"))


def _kept(middle: float, low: float, high: float, half: float) -> float:
    return max(min(middle, high - EDGE - half), low + EDGE + half)


def _start(frame: Frame, length: float) -> float:
    """Return the left end of texts above the axes: the left end of the axes, or further left for long texts."""
    left, _, right, _ = frame.outer
    return max(left + EDGE, min(frame.inner[0], right - EDGE - length))


def _columns(panel: Panel) -> list[Sequence[Series]]:
    """Return the series of the legend in as many columns as fit; no columns if there is at most one series."""
    if len(panel.series) < 2:
        return []
    room = 72 * panel.width - 2 * EDGE
    choices = (split(panel.series, count) for count in range(len(panel.series), 1, -1))
    return next((columns for columns in choices if sum(_widths(columns)) - COLUMN_GAP <= room), [panel.series])


def _rows(panel: Panel) -> int:
    return max(map(len, _columns(panel)), default=0)


def _widths(columns: Sequence[Sequence[Series]]) -> list[float]:
    return [
        HANDLE + HANDLE_GAP + COLUMN_GAP + max(width(series.label, LEGEND_SIZE) for series in column)
        for column in columns
    ]


def _legend(frame: Frame) -> Iterator[tuple[float, float, Series]]:
    """Yield every series of the legend, with the left end and the vertical middle of its entry."""
    columns = _columns(frame.panel)
    widths = _widths(columns)
    begin = _start(frame, sum(widths) - COLUMN_GAP)
    top = frame.inner[3] + HEADER_GAP + LEGEND_ROW * (_rows(frame.panel) - 0.5) - 2.5
    for x, column in zip(accumulate(widths, initial=begin), columns, strict=False):
        for row, series in enumerate(column):
            yield x, top - LEGEND_ROW * row, series


def _handles(frame: Frame, points: Transform) -> Iterator[Line2D]:
    for x, y, series in _legend(frame):
        shown = look(series)
        ends = [x, x + HANDLE / 2, x + HANDLE]
        line = Line2D(ends, [y] * 3, color=shown.colour, transform=points, markevery=[1], **shown.marks)
        line.set_linestyle(shown.line if frame.panel.lines else "none")
        yield line
