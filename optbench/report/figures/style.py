"""One look for every figure: colours, markers, text sizes, and the few drawing steps that they share.

The series colours are those of Okabe & Ito 2008, made for colour-blind readers, with the lightest ones darkened until
every one has a contrast of at least 3:1 both on white and on #15181c: one set serves light and dark pages. Colour is
never alone: every optimizer has a marker of its own too.
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
"""Text, axes, means. A page replaces it by the colour of its own text."""
PALETTE = ("#0072b2", "#c28500", "#009e73", "#d55e00", "#cc79a7", "#3d9acb", "#7d7d7d", "#9a9300")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES: tuple[Line, ...] = ("solid", "dashed", "dotted", "dashdot")
COLOURS = "viridis"
"""Of heat maps: even steps to the eye, without hue too; its cells are opaque, so they look the same on any page."""
ON_DARK, ON_LIGHT = "#ffffff", "#111111"
SEEDS = "_seeds"
"""The name of every line artist whose points are single seeds."""

FONT = "DejaVu Sans"
"""It comes with matplotlib, so that the same data give the same bytes; few fonts of a page are wider."""
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
    """How one series is told from the others."""

    colour: str
    marker: str
    filled: bool
    line: Line

    @property
    def marks(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot` for its marker."""
        face = self.colour if self.filled else "none"
        return {"marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.colour, "markeredgewidth": 0.8}


def look(series: Series) -> Look:
    """The optimizer's colour; its marker is moved on, and its line broken, for the second of its series and so on."""
    again, colour = divmod(series.colour, len(PALETTE))
    step = series.turn + again
    return Look(PALETTE[colour], MARKERS[(colour + step) % len(MARKERS)], step % 2 == 0, LINES[step % len(LINES)])


def draw_seeds(axes: Axes, x: Sequence[float], y: Sequence[float], shown: Look) -> None:
    """Every seed as a dot."""
    axes.plot(x, y, linestyle="none", alpha=0.85, **{**shown.marks, "markersize": 3.4}, label=SEEDS)


def draw_curves(axes: Axes, lines: Sequence[ArrayLike], shown: Look) -> None:
    """Every seed as a thin line. lines: each (points, 2)."""
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(lines, colors=shown.colour, alpha=0.35, linewidths=0.6, label=SEEDS))


def draw_means(axes: Axes, x: Sequence[float], y: Sequence[float], shown: Look) -> None:
    """A line through means, with no marker: those are seeds."""
    axes.plot(x, y, color=shown.colour, linestyle=shown.line, label="_means")


def draw_centres(axes: Axes, points: Sequence[tuple[float, float]], shown: Look) -> None:
    """Means as large markers, told from seeds by their edge."""
    marks = {**shown.marks, "markersize": 7.5, "markeredgecolor": INK}
    axes.plot([x for x, _ in points], [y for _, y in points], linestyle="none", **marks, label="_centres")


def draw_line(
    axes: Axes, x: ArrayLike, y: ArrayLike, shown: Look, label: str, markers: int = 7, width: float = 2.0
) -> None:
    """A thick line with about so many markers on its way. label: the name of its artist."""
    every = max(1, np.size(x) // markers)
    look = {"color": shown.colour, "linestyle": shown.line, "linewidth": width, **shown.marks}
    axes.plot(x, y, **look, markevery=(0, every), label=label)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Where an axis begins and ends that is to be the same in several panels."""
    air = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - air, max(values) + air


def labels(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def name_ticks(axes: Axes, which: Which, names: Sequence[str], every: int = 1) -> None:
    """The names at 0, 1, 2 and so on, or `every` second of them and so on."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    axis = _axis(axes, which)
    axis.set_major_locator(FixedLocator(range(0, len(names), every)))
    axis.set_major_formatter(FixedFormatter(names[::every]))


def no_names(axes: Axes, which: Which) -> None:
    """Ticks without texts: another panel has them."""
    from matplotlib.ticker import NullFormatter

    _axis(axes, which).set_major_formatter(NullFormatter())


def log_axis(axes: Axes, which: Which) -> None:
    """Powers of ten, as text: matplotlib's own labels need a font that a page does not have."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    _set_scale(axes, which, "log")
    axis = _axis(axes, which)
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def value_axis(axes: Axes, which: Which, values: Sequence[float], room: int) -> None:
    """The swept values themselves as ticks, on a logarithmic axis (symmetric where one is not positive).

    room: how many of them fit; in between some are left out.
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
    """`10⁻³`; a number that is no power of ten as it is."""
    exponent = round(math.log10(value)) if value > 0 else 0
    if value <= 0 or not math.isclose(value, 10.0**exponent, rel_tol=1e-6):
        return short(value)
    return "1" if exponent == 0 else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def short(value: float) -> str:
    """A swept value as its variant is named, without the zero of the exponent: `3.16e-5`."""
    return value_name(float(f"{value:.6g}")).replace("e-0", "e-").replace("e+0", "e")


def _axis(axes: Axes, which: Which) -> Axis:
    return axes.xaxis if which == "x" else axes.yaxis


def _set_scale(axes: Axes, which: Which, scale: str, **options: float) -> None:
    (axes.set_xscale if which == "x" else axes.set_yscale)(scale, **options)
