"""The distribution of weight magnitudes at the end, from checkpoints.

The figure is drawn for runs with pruning curves and helps to explain them: if many weights are small, removing them
costs little accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optbench.report.figures import style
from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.series import Group, Series, chunks, groups
from optbench.report.figures.wording import MANY_NUMBERS, group_figure, means
from optbench.stats.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.2, 3.1
SEEDS_READ = 5
"""Maximum number of seeds read per series: checkpoints of a large run take long to read, and seeds hardly differ."""
LOW, HIGH, PER_DECADE = -10, 2, 10
EDGES: NDArray[np.float64] = np.linspace(LOW, HIGH, (HIGH - LOW) * PER_DECADE + 1)
"""Edges of the bins of log10|w|. Magnitudes below the lowest edge are counted as zeros and not drawn."""
VISIBLE = 0.005
"""Smallest density drawn, relative to the peak. Smaller densities would be invisible but take up most of the axis."""


@dataclass(frozen=True)
class Magnitudes:
    """The magnitudes of the weights that pruning can remove, pooled over trials.

    density: fraction of the weights per decade of magnitude, one value per bin of `EDGES`.
    nothing: fraction of weights with a magnitude below 10^LOW, including 0.
    median: the median of |w|.
    """

    density: NDArray[np.float64]
    nothing: float
    median: float


def weight_magnitudes(results: Sequence[Results]) -> list[Figure]:
    """Return one figure per experiment and model with pruning curves."""
    figures = []
    for group in groups(results):
        found = {series.label: magnitudes(series) for series in group.shown}
        known = {label: value for label, value in found.items() if value is not None}
        if drawn := [series for series in group.shown if series.label in known]:
            figures.append(_figure(group, drawn, known))
    return figures


def magnitudes(series: Series) -> Magnitudes | None:
    """Read the weights of the first `SEEDS_READ` seeds with a pruning curve and a checkpoint.

    Return None if there is nothing to draw.

    Raises:
        StoreError: a checkpoint is unreadable.
    """
    results = series.arm.results
    pruned = {trial for trial, _ in results.pruning}
    sizes = []
    for trial in series.trials:
        place = results.rows[trial.id].checkpoint
        weights = results.run.checkpoint(place) if trial.id in pruned and place else None
        if weights is not None:
            # Biases, normalisation gains and counters are not pruned.
            layers = [
                np.abs(weight, dtype=np.float64).ravel()
                for weight in weights.values()
                if weight.ndim >= 2 and np.issubdtype(weight.dtype, np.floating)
            ]
            sizes.append(np.concatenate(layers) if layers else np.empty(0))
        if len(sizes) == SEEDS_READ:
            break
    together = np.concatenate(sizes) if sizes else np.empty(0)
    together = together[np.isfinite(together)]
    shown = np.log10(together[together >= 10.0**LOW])
    if not len(shown):
        return None
    counts, _ = np.histogram(np.minimum(shown, HIGH), EDGES)
    return Magnitudes(
        density=counts / len(together) * PER_DECADE,
        nothing=1 - len(shown) / len(together),
        median=float(np.median(together)),
    )


def _figure(group: Group, drawn: Sequence[Series], known: Mapping[str, Magnitudes]) -> Figure:
    what = (
        f"Magnitudes of the weights of all layers, without biases, at the end of {group.experiment}, {group.model}, "
        f"over at most the first {SEEDS_READ} seeds; the area under a line is the share of weights."
    )
    if gone := [(series.label, known[series.label].nothing) for series in drawn if known[series.label].nothing > 0]:
        named = ", ".join(f"{100 * share:.3g}% of {label}" for label, share in gone[:MANY_NUMBERS])
        more = ", ..." if gone[MANY_NUMBERS:] else ""
        what += f" Not drawn because they are 0 or below {style.power(10.0**LOW)}: {named}{more}."
    middle = [(series.label, float(np.log10(max(known[series.label].median, 1e-300)))) for series in drawn]
    alt = f"Median of log10 of the weights' magnitudes: {means(middle, 2)}."
    panels = [_panel(part, known) for part in chunks(drawn)]
    return group_figure(group, "weight-magnitudes", "weight magnitudes", what, alt, panels)


def _panel(part: Sequence[Series], known: Mapping[str, Magnitudes]) -> Panel:
    def draw(axes: Axes) -> None:
        style.log_axis(axes, "x")
        middles = 10.0 ** ((EDGES[1:] + EDGES[:-1]) / 2)
        highest = np.max([known[series.label].density for series in part], axis=0)
        present = np.flatnonzero(highest > VISIBLE * highest.max())
        first, last = max(0, present[0] - 1), min(len(middles), present[-1] + 2)
        for series in part:
            x, y = middles[first:last], known[series.label].density[first:last]
            style.draw_line(axes, x, y, style.look(series), label="_magnitudes", markers=8, width=1.5)
        axes.set_ylim(bottom=0)
        style.labels(axes, "magnitude of the weight", "share of weights per decade")

    return Panel(draw, WIDTH, HEIGHT, series=part)
