"""Write docs/gallery from the panel: a page and a figure for each optimizer, and a table and a map of all optimizers.

python benchmarks/gallery.py [--check]      # --check: only report whether the pages differ from the panel
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from optbench.report.figures.rendering import METADATA, styled
from optbench.report.figures.style import INK, PALETTE
from optbench.report.figures.texts import Box
from optbench.report.figures.texts import width as text_width
from optbench.report.numbers import interval
from optbench.studies.fingerprint import figure, wording
from optbench.studies.fingerprint.entry import Array
from optbench.studies.fingerprint.neighbours import Neighbour, standardised
from optbench.studies.fingerprint.panel import Panel, shipped
from optbench.studies.fingerprint.standing import Fingerprint, fingerprint, learnt_only
from optbench.studies.fingerprint.strips import STRIPS, SUITE
from optbench.studies.fingerprint.words import Sentence, sentences
from optbench.suite import load_suite, resolve_suite_path

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
NEIGHBOURS = 5
DPI = 120
SIZE = 7.5
"""Font size of the names on the map, in points."""
LOADINGS = 3
"""Number of strips in each axis label of the map."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    panel = shipped()
    found = [fingerprint(entry, panel) for entry in panel.entries]
    others = {one.name: list(fingerprint(one, panel, apart=one.name).neighbours) for one in panel.entries}
    pages = {"index.md": index(found, others, panel)}
    pages |= {f"{one.name}.md": page(one, others[one.name]) for one in found}
    drifted = [name for name, text in pages.items() if _text(FOLDER / name) != text]
    if options.check:
        for name in drifted:
            print(f"{FOLDER / name}: differs from the panel; run this script without --check", file=sys.stderr)
        return int(bool(drifted))
    FOLDER.mkdir(exist_ok=True)
    for old in (*FOLDER.glob("*.md"), *FOLDER.glob("*.svg"), *FOLDER.glob("*.png")):
        old.unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for one in found:
        figure.save(one, FOLDER / f"{one.name}.png", dpi=DPI)
    draw_map(panel, FOLDER / "map.svg")
    return 0


def index(found: list[Fingerprint], others: dict[str, list[Neighbour]], panel: Panel) -> str:
    """Return the page with the table and the map."""
    heads = ["optimizer", "nearest", *(strip.title for strip in STRIPS)]
    lines = [
        "# Gallery",
        "",
        f"The table shows the 16 strips of `optbench fingerprint` for the {len(found)} optimizers of the panel, each "
        f"at its best learning rates, as pseudo-medians over {len(panel.seeds)} seeds. On the site, click on a column "
        "title to sort by that column, and on a name to open the page of that optimizer.",
        "",
        "![Map of the panel](map.svg)",
        "",
        "The map shows the first two principal components of the standardised strips. The label of each axis lists the "
        "strips with the largest loadings.",
        "",
        '<div class="sortable" markdown>',
        "",
        f"| {' | '.join(heads)} |",
        f"|---|---|{'---:|' * len(STRIPS)}",
        *(_row(one, others[one.name]) for one in found),
        "",
        "</div>",
        "",
        *_made(panel),
        "",
    ]
    return "\n".join(lines)


def page(found: Fingerprint, others: list[Neighbour]) -> str:
    """Return the page of one optimizer."""
    settings = load_suite(resolve_suite_path(SUITE)).optimizers[found.name]
    said = ", ".join(f"{key}: {value}" for key, value in settings.model_dump().items() if key != "lr")
    lines = [
        f"# {found.name}",
        "",
        f"`{{{said}}}`. {wording.rates(found)}",
        "",
        f"![Fingerprint of {found.name}]({found.name}.png)",
        "",
        *(f"{_plain(one.text)}\n" for one in _about(found)),
        "| strip | value [95% interval] | below |" + "".join(f" against {j[0].other} |" for j in found.references),
        "|---|---|---:|" + "---|" * len(found.references),
        *_strips(found),
        "",
        "| nearest | distance [95% interval] | nearest in resamples |",
        "|---|---|---:|",
        *(
            f"| [{one.name}]({one.name}.md) | {one.distance:.2f} {interval(one.interval, 2)} "
            f"| {100 * one.nearest:.0f}% |"
            for one in others[:NEIGHBOURS]
        ),
        "",
        "[All optimizers](index.md)",
        "",
    ]
    return "\n".join(lines)


def draw_map(panel: Panel, path: Path) -> None:
    """Write the map as SVG."""
    places, names = principal_components(np.stack([entry.values for entry in learnt_only(panel).entries]))
    with styled({"svg.fonttype": "path", "svg.hashsalt": "map", "savefig.facecolor": "white"}):
        canvas = Figure(figsize=(7.5, 6.2), layout="constrained")
        axes = canvas.add_subplot()
        axes.scatter(places[:, 0], places[:, 1], s=18, color=PALETTE[0])
        axes.set_xlabel(names[0], fontsize=8)
        axes.set_ylabel(names[1], fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.12)
        canvas.draw_without_rendering()  # the layout determines where a point is on the canvas
        points = axes.transData.transform(places) * 72 / canvas.dpi
        for (x, y), name, offset in zip(places, panel.names, offsets(points, panel.names), strict=True):
            axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", fontsize=SIZE, color=INK)
        canvas.savefig(path, metadata=METADATA["svg"])


def offsets(points: Array, names: list[str]) -> list[tuple[float, float]]:
    """Return each name's offset from its marker at `points` (P, 2), so that names do not cover markers or each other.

    Positions and offsets are in typographic points.
    """
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in points.tolist()]
    found: list[tuple[float, float]] = []
    for (x, y), name in zip(points.tolist(), names, strict=True):
        width = text_width(name, SIZE)
        sides = [(right, up) for up in (-3, 4, -10, 11, -17, 18, -24) for right in (5.0, -5.0 - width)]
        boxes = [(x + right, y + up - 1, x + right + width, y + up + SIZE) for right, up in sides]
        free = [i for i, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        best = free[0] if free else 0
        taken.append(boxes[best])
        found.append(sides[best])
    return found


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def principal_components(values: Array) -> tuple[Array, tuple[str, str]]:
    """Return the first two components of the standardised strips, (P, S, n) -> (P, 2), and the axis labels.

    A missing value is replaced with the panel's mean on that strip.
    """
    table = standardised(values)
    table = np.where(np.isfinite(table), table, 0.0)
    table = table - table.mean(axis=0)
    _, singular, axes = np.linalg.svd(table, full_matrices=False)
    share = singular**2 / (singular**2).sum()
    return table @ axes[:2].T, (_axis(0, axes, share), _axis(1, axes, share))


def _axis(i: int, axes: Array, share: Array) -> str:
    """Return an axis label, e.g. `component 1 (41% of the variance): + stable rank; − cosine`."""
    order = np.argsort(-np.abs(axes[i]))[:LOADINGS]
    loads = "; ".join(f"{'+' if axes[i, j] > 0 else '−'} {STRIPS[j].label}" for j in order)
    return f"component {i + 1} ({100 * share[i]:.0f}% of the variance): {loads}"


def _row(found: Fingerprint, others: list[Neighbour]) -> str:
    link = f"[{others[0].name}]({others[0].name}.md) {others[0].distance:.2f}" if others else "–"
    values = [wording.value(one) for one in found.standings]
    return f"| {' | '.join([f'[{found.name}]({found.name}.md)', link, *values])} |"


def _about(found: Fingerprint) -> Iterator[Sentence]:
    """Yield the sentences that compare an optimizer with others, but not with itself."""
    for one in sentences(found):
        if one.verdicts and all(verdict.other != found.name for verdict in one.verdicts):
            yield one


def _strips(found: Fingerprint) -> Iterator[str]:
    for i, one in enumerate(found.standings):
        verdicts = "".join(f" {wording.verdict(judged[i])} |" for judged in found.references)
        yield f"| {one.strip.title} | {wording.value_with_interval(one)} | {wording.place(one)} |{verdicts}"


def _plain(text: str) -> str:
    """Escape brackets, which Markdown would read as links."""
    return text.replace("[", "\\[").replace("]", "\\]")


def _made(panel: Panel) -> list[str]:
    made = ", ".join(f"{key} {value}" for key, value in panel.made.items())
    return [f"The panel was made by `python benchmarks/panel.py` with {made}."]


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
