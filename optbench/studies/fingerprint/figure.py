"""The fingerprint as a figure for a paper: PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optbench.report.figures.rendering import DPI, METADATA, styled
from optbench.report.figures.style import FONT, INK, PALETTE
from optbench.store.files import write_atomically
from optbench.studies.fingerprint import wording
from optbench.studies.fingerprint.panel import REFERENCES
from optbench.studies.fingerprint.standing import Fingerprint, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, ROW, HEAD = 7.0, 0.27, 0.75
"""Sizes in inches: the width of a page of text, the height of a strip, and the total space above and below strips."""
QUIET = "#7d7d7d"


def save(found: Fingerprint, path: Path, dpi: int = DPI) -> None:
    """Draw a fingerprint and write the figure to a file, whose suffix must be one of `FILE_FORMATS`.

    Raises:
        StoreError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    suffix = path.suffix.lstrip(".")
    fixed = {"svg.fonttype": "path", "svg.hashsalt": found.name, "savefig.facecolor": "white"}
    with styled(fixed):
        canvas = Figure(figsize=(WIDTH, HEAD + ROW * len(found.standings)))
        axes = canvas.add_axes((0.23, 0.4 / canvas.get_figheight(), 0.55, 1 - HEAD / canvas.get_figheight()))
        _draw(found, axes)
        write_atomically(
            path, lambda temporary: canvas.savefig(temporary, format=suffix, dpi=dpi, metadata=METADATA[suffix])
        )


def _draw(found: Fingerprint, axes: Axes) -> None:
    rows = len(found.standings)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_axis_off()
    colours = dict(zip(REFERENCES, PALETTE[0::3], strict=False))
    nearest = next((one.name for one in found.neighbours), None)
    if nearest is not None:
        colours.setdefault(nearest, PALETTE[2])
    for y, one in enumerate(found.standings):
        _strip(axes, y, one, colours)
        axes.text(-0.05, y, one.strip.title, ha="right", va="center", fontsize=8, family=FONT)
        said = wording.value(one) if one.centre is not None else "no value"
        words = "  ".join(f"{wording.verdict(judged[y]):<6}" for judged in found.references)
        axes.text(1.05, y, f"{said:>7}   {words}", ha="left", va="center", fontsize=7, family="DejaVu Sans Mono")
    for name, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=2.5, label=name)
    axes.plot([], [], color=INK, marker="o", markersize=5, linewidth=1.5, label=wording.own(found))
    axes.plot([], [], color=QUIET, linewidth=0.8, label=f"panel of {len(found.panel.entries)}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, frameon=False, fontsize=7, handlelength=1.2)
    axes.set_title(wording.title(found), fontsize=9.5, loc="left", pad=4)
    if found.references:
        heads = "  ".join(f"{judged[0].other:<6}" for judged in found.references)
        axes.text(1.05, -0.85, f"{'':>7}   {heads}", ha="left", va="center", fontsize=7, family="DejaVu Sans Mono")


def _strip(axes: Axes, y: int, one: Standing, colours: dict[str, str]) -> None:
    every = [tick.centre for tick in one.ticks]
    every += [*(one.interval or ()), *([one.centre] if one.centre is not None else [])]
    if not every:
        return
    low, high = min(every), max(every)

    def at(value: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    axes.plot([0, 1], [y + 0.3] * 2, color=QUIET, linewidth=0.5, alpha=0.5)
    for tick in sorted(one.ticks, key=lambda tick: tick.name in colours):
        colour = colours.get(tick.name, QUIET)
        marked = tick.name in colours
        axes.plot(
            [at(tick.centre)] * 2,
            [y + 0.3, y - (0.2 if marked else 0.05)],
            color=colour,
            linewidth=2.0 if marked else 0.7,
            solid_capstyle="butt",
        )
    if one.interval is not None:
        axes.plot([at(end) for end in one.interval], [y - 0.1] * 2, color=INK, linewidth=1.5, alpha=0.6)
    if one.centre is not None:
        axes.plot([at(one.centre)], [y - 0.1], color=INK, marker="o", markersize=4)
