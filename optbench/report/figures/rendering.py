"""Figures as inline SVG and as files, drawn with matplotlib's objects rather than pyplot's global state."""

from __future__ import annotations

import contextlib
import io
import itertools
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

# Files contain no dates or versions, so that the same data give the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def to_svg(figure: Figure) -> tuple[str, ...]:
    """Render one SVG element per panel, for an HTML page.

    An element has unique ids, no background, and no style sheets, scripts or external references. Its font and the
    colour of its text and axes (`currentColor`) come from the page. The page can set the series colours in the CSS
    variables `--c0` to `--c7`.
    """
    with styled({"svg.fonttype": "none"}):
        return tuple(_panel_svg(figure, number, panel) for number, panel in enumerate(figure.panels))


def save(figure: Figure, folder: Path, formats: Sequence[FileFormat] = FILE_FORMATS) -> dict[str, Path]:
    """Write all panels, arranged in rows, to one file per format; return the paths by format.

    Raises:
        StoreError: the folder cannot be created or written.
    """
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    with styled({"svg.fonttype": "path", "svg.hashsalt": figure.name, "savefig.facecolor": "white"}):
        canvas = _canvas(figure.panels)
        for suffix in formats:
            assert suffix in FILE_FORMATS, suffix
            data = io.BytesIO()
            canvas.savefig(data, format=suffix, dpi=DPI, metadata=METADATA[suffix])
            files[suffix] = folder / f"{figure.name}.{suffix}"
            written = data.getvalue()
            write_atomically(files[suffix], lambda temporary, written=written: _write(temporary, written))  # type: ignore[misc]
    return files


@contextlib.contextmanager
def styled(options: dict[str, Any]) -> Iterator[None]:
    """Return a context in which matplotlib uses the style that all figures share, plus `options`."""
    import matplotlib.style

    # "default" comes first, so that a user's matplotlibrc does not change the look of a report.
    with matplotlib.style.context(["default", {**STYLE, **options}]):
        yield


def _canvas(panels: Sequence[Panel]) -> Canvas:
    """Draw the panels on a new canvas, `PER_ROW` in a row, aligned at the bottom."""
    from matplotlib.figure import Figure as Canvas

    from optbench.report.figures.frame import add_panel, height

    rows = [panels[i : i + PER_ROW] for i in range(0, len(panels), PER_ROW)]
    width = max(sum(panel.width for panel in row) for row in rows)
    bottom = sum(max(map(height, row)) for row in rows)
    canvas = Canvas(figsize=(width, bottom / 72))
    for row in rows:
        bottom -= max(map(height, row))
        lefts = itertools.accumulate((72 * panel.width for panel in row), initial=0.0)
        for panel, left in zip(row, lefts, strict=False):
            add_panel(canvas, panel, left, bottom)
    return canvas


def _panel_svg(figure: Figure, number: int, panel: Panel) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    canvas = _canvas([panel])
    matplotlib.rcParams["svg.hashsalt"] = f"{figure.name}/{number}"  # set here, while the style is active
    # instead of `savefig`, which draws everything twice
    print_svg: Callable[..., None] = FigureCanvasSVG(canvas).print_svg
    print_svg(text, metadata=METADATA["svg"])
    label = figure.title if len(figure.panels) == 1 else f"{figure.title}, part {number + 1} of {len(figure.panels)}"
    return _inline(text.getvalue(), label)


def _inline(document: str, label: str) -> str:
    """Convert matplotlib's SVG document to an inline element."""
    svg = document[document.index("<svg") :].strip()
    # A style sheet in a page would apply to all of it.
    svg = re.sub(r"\s*<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    # Ids must be unique in a page: unreferenced ones are dropped and the others salted.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"<g>\s*</g>\s*", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    # a hundredth of a point is finer than any screen
    svg = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    # The page determines the font; matplotlib names its own in one of two ways.
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
