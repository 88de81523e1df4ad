"""The style of all figures: colours, markers, text sizes and shared drawing functions.

The series colours are those of Okabe & Ito 2008, which are designed for colour-blind readers. The lightest ones are
darkened so that every colour has a contrast of at least 3:1 on both white and #15181c; one set therefore works on light
and dark pages. Every optimizer also has its own marker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from optbench.kinds import value_name
from optbench.report.figures.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Which = Literal["x", "y"]
Line = Literal["solid", "dashed", "dotted", "dashdot"]

INK = "#1a1b1d"
"""Colour of text, axes and means; an HTML page replaces it by its own text colour."""
PALETTE = ("#0072b2", "#c28500", "#009e73", "#d55e00", "#cc79a7", "#3d9acb", "#7d7d7d", "#9a9300")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES: tuple[Line, ...] = ("solid", "dashed", "dotted", "dashdot")
COLOURS = "viridis"
"""Colour map of heat maps: perceptually uniform even in greyscale, and opaque, so it looks the same on any page."""
ON_DARK, ON_LIGHT = "#ffffff", "#111111"
SEEDS = "_seeds"
"""Label of the artists that draw single seeds, as dots or thin lines."""

FONT = "DejaVu Sans"
"""Font of all figures. It ships with matplotlib, so the same data give the same bytes. Few web fonts are wider, so
texts usually still fit when a page replaces the font."""
GRID: dict[str, Any] = {"alpha": 0.15, "linewidth": 0.6, "zorder": -1}
AXES: dict[str, Any] = {"linewidth": 0.8, "zorder": 3}

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "axes.formatter.useoffset": False,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.0,
    "path.simplify_threshold": 0.3,
    "pdf.fonttype": 42,
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], "none"),
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a series."""

    colour: str
    marker: str
    filled: bool
    line: Line

    @property
    def marks(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot` that select the marker."""
        face = self.colour if self.filled else "none"
        return {"marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.colour, "markeredgewidth": 0.8}


def look(series: Series) -> Look:
    """Return the look of a series. Each further series of an optimizer gets the next marker and line style."""
    again, colour = divmod(series.colour, len(PALETTE))
    step = series.turn + again
    return Look(PALETTE[colour], MARKERS[(colour + step) % len(MARKERS)], step % 2 == 0, LINES[step % len(LINES)])


def draw_seeds(axes: Axes, x: Sequence[float], y: Sequence[float], shown: Look) -> None:
    """Draw every seed as a dot."""
    axes.plot(x, y, linestyle="none", alpha=0.85, **{**shown.marks, "markersize": 3.4}, label=SEEDS)


def draw_curves(axes: Axes, lines: Sequence[ArrayLike], shown: Look) -> None:
    """Draw a thin line for each seed. Each of the `lines` has shape (points, 2)."""
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(lines, colors=shown.colour, alpha=0.35, linewidths=0.6, label=SEEDS))


def draw_means(axes: Axes, x: Sequence[float], y: Sequence[float], shown: Look) -> None:
    """Draw a line through means, without markers, which would look like seeds."""
    axes.plot(x, y, color=shown.colour, linestyle=shown.line, label="_means")


def draw_centres(axes: Axes, points: Sequence[tuple[float, float]], shown: Look) -> None:
    """Draw means as markers with an edge, which are larger than those of seeds."""
    marks = {**shown.marks, "markersize": 7.5, "markeredgecolor": INK}
    axes.plot([x for x, _ in points], [y for _, y in points], linestyle="none", **marks, label="_centres")


def draw_line(
    axes: Axes, x: ArrayLike, y: ArrayLike, shown: Look, label: str, markers: int = 7, width: float = 2.0
) -> None:
    """Draw a thick line with about `markers` markers. `label` is the name of the artist."""
    every = max(1, np.size(x) // markers)
    look = {"color": shown.colour, "linestyle": shown.line, "linewidth": width, **shown.marks}
    axes.plot(x, y, **look, markevery=(0, every), label=label)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of an axis that includes all values, with a margin."""
    air = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - air, max(values) + air


def labels(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def name_ticks(axes: Axes, which: Which, names: Sequence[str], every: int = 1) -> None:
    """Write names at the positions 0, 1, 2, ... of an axis, or at only every `every`-th position."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    axis = _axis(axes, which)
    axis.set_major_locator(FixedLocator(range(0, len(names), every)))
    axis.set_major_formatter(FixedFormatter(names[::every]))


def no_names(axes: Axes, which: Which) -> None:
    """Remove the tick labels of an axis, for a panel that shares them with another panel."""
    from matplotlib.ticker import NullFormatter

    _axis(axes, which).set_major_formatter(NullFormatter())


def log_axis(axes: Axes, which: Which) -> None:
    """Make an axis logarithmic, with plain-text labels, since HTML pages lack matplotlib's font for powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    _set_scale(axes, which, "log")
    axis = _axis(axes, which)
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def value_axis(axes: Axes, which: Which, values: Sequence[float], room: int) -> None:
    """Use the swept values as ticks on a logarithmic axis (symmetric logarithmic if some value is not positive).

    room: the number of ticks that fit; others are left out.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter

    if min(values) > 0:
        _set_scale(axes, which, "log")
    else:
        _set_scale(axes, which, "symlog", linthresh=min((abs(value) for value in values if value), default=1.0))
    axis = _axis(axes, which)
    every = -(-len(values) // room)
    axis.set_major_locator(FixedLocator(list(values[::every])))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def power(value: float) -> str:
    """Format a power of ten as `10⁻³`, and any other number by `short`."""
    exponent = round(math.log10(value)) if value > 0 else 0
    if value <= 0 or not math.isclose(value, 10.0**exponent, rel_tol=1e-6):
        return short(value)
    return "1" if exponent == 0 else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def short(value: float) -> str:
    """Format a swept value as in the variant's name but without a leading zero in the exponent, e.g. `3.16e-5`."""
    return value_name(float(f"{value:.6g}")).replace("e-0", "e-").replace("e+0", "e")


def _axis(axes: Axes, which: Which) -> Axis:
    return axes.xaxis if which == "x" else axes.yaxis


def _set_scale(axes: Axes, which: Which, scale: str, **options: float) -> None:
    (axes.set_xscale if which == "x" else axes.set_yscale)(scale, **options)
