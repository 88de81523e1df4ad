"""Figures as SVG for a page, and as files for a paper. Uses matplotlib's objects, never pyplot's global state."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import quoteattr

from optbench.report.figures.drawing import Figure, Panel
from optbench.report.figures.style import INK, PALETTE, STYLE
from optbench.store.files import reported, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

FileFormat = Literal["svg", "png", "pdf"]
FILE_FORMATS: tuple[FileFormat, ...] = ("svg", "png", "pdf")
PER_ROW = 3
DPI = 200

# No dates and no version: the same data give the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def to_svg(figure: Figure) -> tuple[str, ...]:
    """One SVG element per panel, to stand inside an HTML page.

    It takes the colour of text and axes from the page (`currentColor`) and its font too, has no background, and
    its series colours can be set as `--c0` to `--c7`. It has no style sheet, script or outside reference, and its
    ids are not used by any other figure.
    """
    with _style({"svg.fonttype": "none"}):
        return tuple(_panel_svg(figure, number, panel) for number, panel in enumerate(figure.panels))


def save(figure: Figure, folder: Path, formats: Sequence[FileFormat] = FILE_FORMATS) -> dict[str, Path]:
    """Write all panels, side by side, as one file per format; the paths by format.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for suffix in formats:
        assert suffix in FILE_FORMATS, suffix
        data = io.BytesIO()
        options = {"svg.fonttype": "path", "svg.hashsalt": figure.name, "savefig.facecolor": "white"}
        with _style(options):
            _together(figure).savefig(data, format=suffix, dpi=DPI, metadata=_METADATA[suffix])
        files[suffix] = folder / f"{figure.name}.{suffix}"
        written = data.getvalue()
        write_atomically(files[suffix], lambda temporary, written=written: _write(temporary, written))  # type: ignore[misc]
    return files


@contextlib.contextmanager
def _style(options: dict[str, Any]) -> Iterator[None]:
    import matplotlib.style

    # "default" first: a user's own matplotlibrc must not change what a report looks like.
    with matplotlib.style.context(["default", {**STYLE, **options}]):
        yield


def _alone(panel: Panel) -> Canvas:
    """One panel on a canvas of its own, laid out."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(panel.width, panel.height), layout="constrained")
    panel.draw(canvas.add_subplot())
    engine = canvas.get_layout_engine()
    assert engine is not None
    engine.execute(canvas)
    canvas.set_layout_engine("none")
    for axes in canvas.axes:
        # The solver's last bits differ from call to call, and would be seen in the ids of an SVG.
        axes.set_position(_rounded(axes.get_position(original=True).bounds))
    return canvas


def _together(figure: Figure) -> Canvas:
    """All panels on one canvas as they are alone, `PER_ROW` in a row, standing on the bottom of their row."""
    from matplotlib.figure import Figure as Canvas

    rows = [figure.panels[i : i + PER_ROW] for i in range(0, len(figure.panels), PER_ROW)]
    width = max(sum(panel.width for panel in row) for row in rows)
    bottom = height = sum(max(panel.height for panel in row) for row in rows)
    canvas = Canvas(figsize=(width, height))
    for row in rows:
        bottom -= max(panel.height for panel in row)
        left = 0.0
        for panel in row:
            before = len(canvas.axes)
            panel.draw(canvas.add_axes((0.0, 0.0, 1.0, 1.0)))
            # With those of a scale of colours.
            for axes, alone in zip(canvas.axes[before:], _alone(panel).axes, strict=True):
                x, y, w, h = alone.get_position(original=True).bounds
                x, y = left + x * panel.width, bottom + y * panel.height
                place = (x / width, y / height, w * panel.width / width, h * panel.height / height)
                axes.set_position(_rounded(place))
            left += panel.width
    return canvas


def _rounded(bounds: Sequence[float]) -> tuple[float, float, float, float]:
    left, bottom, width, height = (round(float(value), 5) for value in bounds)
    return left, bottom, width, height


def _panel_svg(figure: Figure, number: int, panel: Panel) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    canvas = _alone(panel)
    matplotlib.rcParams["svg.hashsalt"] = f"{figure.name}/{number}"  # until the style is left
    # Not `savefig`, which draws everything twice.
    print_svg: Callable[..., None] = FigureCanvasSVG(canvas).print_svg
    print_svg(text, metadata=_METADATA["svg"])
    label = figure.title if len(figure.panels) == 1 else f"{figure.title}, part {number + 1} of {len(figure.panels)}"
    return _inline(text.getvalue(), label)


def _inline(document: str, label: str) -> str:
    """matplotlib's SVG document as an element of a page."""
    svg = document[document.index("<svg") :].strip()
    # A style sheet inside a page would be a style sheet for all of it.
    svg = re.sub(r"\s*<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    # Two figures of a page must not have the same id: only those that are referred to stay, and those are salted.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"<g>\s*</g>\s*", "", svg)
    # A hundredth of a point is finer than any screen.
    svg = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    # The page's own font; matplotlib names its one in either of two ways.
    svg = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;\"]*", _font, svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = svg.replace(INK, "currentColor")
    for i, colour in enumerate(PALETTE):
        svg = svg.replace(colour, f"var(--c{i}, {colour})")
    attributes = f'role="img" aria-label={quoteattr(label)} style="stroke-linejoin: round; stroke-linecap: butt"'
    return svg.replace("<svg ", f"<svg {attributes} ", 1)


def _font(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1]}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}"


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
