"""Axes and labels of panels agree with matplotlib's ticks and texts, and are legible."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray

from optbench.report.figures import Figure, Panel, save, style, to_svg
from optbench.report.figures.drawing import MAX_WIDTH
from optbench.report.figures.frame import Frame, add_panel, height, labels
from optbench.report.figures.heat_maps import HeatMap, draw_heat_map
from optbench.report.figures.series import groups
from optbench.report.figures.style import FONT, STYLE
from optbench.report.figures.tasks import TaskNames
from optbench.report.figures.texts import MIDDLE, Anchor, Box, Label, Labels, width
from optbench.stats.results import Results
from tests.made_runs import SUITE, made_run
from tests.reports import figures, on_axes


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return made_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def drawn(results: Results) -> list[Figure]:
    return figures([results])


def framed(panel: Panel) -> tuple[Canvas, Frame]:
    with matplotlib.style.context(["default", STYLE]):
        canvas = Canvas(figsize=(panel.width, height(panel) / 72), dpi=72)
        return canvas, add_panel(canvas, panel, 0.0, 0.0)


def overlap(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def text_faults(panel: Panel) -> list[str]:
    """Return the faults of the texts of a panel: cut off, or overlapping other texts or the data."""
    frame = framed(panel)[1]
    left, bottom, right, top = frame.outer
    faults = []
    for label in labels(frame):
        x0, y0, x1, y1 = label.box
        if x0 < left or y0 < bottom or x1 > right or y1 > top:
            faults.append(f"{label.text!r} is cut off")
        if overlap(label.box, frame.inner):
            faults.append(f"{label.text!r} is over the data")
    for one, other in itertools.combinations(labels(frame), 2):
        if overlap(one.box, other.box):
            faults.append(f"{one.text!r} is over {other.text!r}")
    return faults


def test_no_text_is_cut_off_or_overlaps_text_or_data(drawn: list[Figure]) -> None:
    panels = [panel for figure in drawn for panel in figure.panels]
    assert {fault for panel in panels for fault in text_faults(panel)} == set()
    frames = [framed(panel)[1] for panel in panels]
    assert not [label.text for frame in frames for label in labels(frame) if "…" in label.text]
    assert any(len(frame.panel.series) > 1 for frame in frames)
    for frame in frames:
        x0, y0, x1, y1 = frame.inner
        assert (x1 - x0) * (y1 - y0) > 0.4 * 72 * 72 * frame.panel.width * frame.panel.height


def test_overlapping_and_cut_texts_are_detected() -> None:
    def draw(axes: Axes) -> None:
        style.name_ticks(axes, "x", ["long name of a model"] * 2)
        style.name_ticks(axes, "y", ["m" * 60])
        axes.set(xlim=(-9, 9), ylim=(-1, 1))

    faults = text_faults(Panel(draw, 2.0, 2.0))
    assert any("cut off" in fault for fault in faults)
    assert any("over" in fault for fault in faults)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("letters", [3, 20, 40])
def test_long_names_and_legends_fit(results: Results, count: int, letters: int) -> None:
    series = [
        dataclasses.replace(groups([results])[0].series[0], label=f"{i}{'m' * letters}"[:letters], colour=i)
        for i in range(count)
    ]

    def draw(axes: Axes) -> None:
        axes.set(xlim=(0, 100_000), ylim=(-12_345, 67_890))
        style.labels(axes, "x" * letters, "y" * (letters // 2))

    panel = Panel(draw, MAX_WIDTH, 3.0, "t" * 10, series)
    assert text_faults(panel) == []
    shown = [label.text for label in labels(framed(panel)[1])]
    assert letters == 40 or not any("…" in text for text in shown)
    assert all(any(one.label in text or f"{i}m" in text for text in shown) for i, one in enumerate(series))


def log(axes: Axes) -> None:
    axes.plot([1, 2, 3], [1e-7, 1e-3, 20])
    style.log_axis(axes, "y")


def symmetric(axes: Axes) -> None:
    axes.plot([0, 1e-4, 1e-1], [1, 2, 3])
    style.value_axis(axes, "x", [0, 1e-4, 1e-2, 1e-1], room=5)


def upside_down(axes: Axes) -> None:
    axes.set(xlim=(0.913, 0.977), ylim=(3.5, -0.5))
    style.name_ticks(axes, "y", ["a", "b", "c", "d"])


def half_of_the_names(axes: Axes) -> None:
    axes.set(xlim=(-0.5, 9.5))
    style.name_ticks(axes, "x", "abcdefghij", every=2)


def negative(axes: Axes) -> None:
    axes.plot([-0.5, 30_000], [-3, 4])


@pytest.mark.parametrize("draw", [log, symmetric, upside_down, half_of_the_names, negative])
def test_ticks_equal_those_of_matplotlib(draw: Callable[[Axes], None]) -> None:
    canvas, frame = framed(Panel(draw, 3.0, 3.0))
    (axes,) = canvas.axes
    with matplotlib.style.context(["default", STYLE]):
        axes.set_axis_on()
        canvas.draw_without_rendering()
        made = [[tick.label1 for tick in axis.get_major_ticks()] for axis in (axes.xaxis, axes.yaxis)]
    for which, (texts, ticks) in enumerate(zip(made, (frame.x, frame.y), strict=True)):
        low, high = frame.inner[which::2]
        places = {text.get_text(): text.get_transform().transform(text.get_position())[which] for text in texts}
        expected = {text: place for text, place in places.items() if low - 1e-6 <= place <= high + 1e-6}
        found = {text: low + share * (high - low) for share, text in ticks}
        assert found == pytest.approx(expected, abs=1e-3)
        assert len(found) >= 2


def test_a_common_factor_of_ticks_is_shown_with_the_axis_name() -> None:
    def draw(axes: Axes) -> None:
        axes.set(xlim=(0, 4e7), xlabel="step")

    assert framed(Panel(draw, 3.0, 3.0))[1].names == ("step (1e7)", "")


def ink(canvas: Canvas) -> NDArray[np.int64]:
    """Return left, top, right and bottom of the drawn area, in pixels."""
    agg = FigureCanvasAgg(canvas)
    agg.draw()
    rows, columns = np.nonzero(np.asarray(agg.buffer_rgba())[..., 3] > 100)
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("anchor", ["left", "center", "right"])
def test_labels_are_placed_like_texts_of_matplotlib(anchor: Anchor, upright: bool) -> None:
    label = Label(100.0, 100.0, "Mixed .93", 20, anchor, upright=upright)
    with matplotlib.style.context(["default", STYLE]):
        ours, theirs = (Canvas(figsize=(4, 4), dpi=72) for _ in range(2))
        ours.add_artist(Labels([label], IdentityTransform()))
        lower = MIDDLE * 20
        x, y = (100 + lower, 100) if upright else (100, 100 - lower)
        text = Text(x, y, label.text, ha=anchor, fontsize=20, rotation=90 * upright, rotation_mode="anchor")
        text.set_transform(IdentityTransform())
        theirs.add_artist(text)
        assert np.abs(ink(ours) - ink(theirs)).max() <= 1
        left, top, right, bottom = ink(ours)
    x0, y0, x1, y1 = label.box
    assert x0 - 2 <= left <= right <= x1 + 2
    assert y0 - 2 <= 288 - bottom <= 288 - top <= y1 + 2


def test_an_empty_label_is_not_drawn() -> None:
    assert Labels([Label(0, 0, "", 8)], IdentityTransform()).labels == []


def test_measured_widths_equal_those_of_the_font() -> None:
    with matplotlib.style.context(["default", STYLE]):
        canvas = Canvas((1, 1), dpi=7200)  # so that glyphs are not fitted to pixels
        renderer = FigureCanvasAgg(canvas).get_renderer()
        for text in ("accuracy at the end", "10⁻³", "−0.25", "adam-rates lr=0.000316"):
            drawn = Text(0, 0, text, figure=canvas, fontproperties=FontProperties(family=FONT, size=9))
            assert width(text, 9) == pytest.approx(drawn.get_window_extent(renderer).width / 100, abs=0.1)


def artists(panel: Panel) -> int:
    canvas = framed(panel)[0]
    return len(canvas.artists) + sum(len(axes.get_children()) for axes in canvas.axes)


def test_the_number_of_artists_grows_with_series_but_not_with_seeds_ticks_or_cells(tmp_path: Path) -> None:
    few, many = (made_run(tmp_path / str(seeds), SUITE.replace("seeds: 3", f"seeds: {seeds}")) for seeds in (3, 6))
    drawn, larger = figures([few]), figures([many])
    assert [figure.name for figure in drawn] == [figure.name for figure in larger]
    for one, other in zip(drawn, larger, strict=True):
        assert [artists(panel) for panel in one.panels] == [artists(panel) for panel in other.panels], one.name
        for panel in one.panels:
            named = len(on_axes(panel).texts)  # labels next to lines
            assert artists(panel) <= (35 + 5 * max(named, len(panel.series))) * (1 + len(panel.below)), one.name


def test_stacked_panels_share_their_axis_without_gaps() -> None:
    def draw(top: float) -> Callable[[Axes], None]:
        return lambda axes: axes.set(xlim=(0, 1), ylim=(0, top), ylabel="y") and None

    panel = Panel(draw(1), 3.0, 2.0, below=(Panel(draw(123_456), 3.0, 1.0), Panel(draw(0.1), 3.0, 1.5, beside=0.5)))
    assert height(panel) == 72 * 4.5
    canvas, frame = framed(panel)
    boxes = [axes.get_position().get_points() * (3.0 * 72, 4.5 * 72) for axes in canvas.axes]
    assert len({tuple(box[:, 0].round(6)) for box in boxes}) == 1
    assert frame.inner[2] == pytest.approx(3.0 * 72 - 0.5 * 72 - 3), "all panels use the margins of the narrowest"
    tops, bottoms = [box[1, 1] for box in boxes], [box[0, 1] for box in boxes]
    assert all(low > high for low, high in zip(bottoms, tops[1:], strict=False))
    assert frame.outer[1] == pytest.approx(72 * 2.5)


def test_no_tick_objects_are_created(drawn: list[Figure]) -> None:
    def ticks(panel: Panel) -> list[int]:
        drawn = framed(panel)[0].axes
        assert len(drawn) == 1 + len(panel.below)
        (counts,) = {tuple(len(axis.majorTicks) for axis in (axes.xaxis, axes.yaxis)) for axes in drawn}
        return list(counts)

    # Matplotlib creates these with any axes and does not use them.
    nothing = ticks(Panel(lambda axes: None, 3.0, 3.0))
    assert {*nothing} <= {1, 2}
    for figure in drawn:
        assert [ticks(panel) for panel in figure.panels] == [nothing] * len(figure.panels), figure.name


def test_a_panel_is_drawn_once_for_a_page_and_once_for_all_files(drawn: list[Figure], tmp_path: Path) -> None:
    calls: Counter[int] = Counter()

    def counted(number: int, panel: Panel) -> Panel:
        def draw(axes: Axes) -> None:
            calls[number] += 1
            panel.draw(axes)

        return dataclasses.replace(panel, draw=draw)

    figure = max(drawn, key=lambda figure: len(figure.panels))
    watched = dataclasses.replace(figure, panels=tuple(itertools.starmap(counted, enumerate(figure.panels))))
    assert len(to_svg(watched)) == len(figure.panels) > 3
    assert calls == dict.fromkeys(range(len(figure.panels)), 1)
    save(watched, tmp_path)
    assert calls == dict.fromkeys(range(len(figure.panels)), 2)


def test_cells_too_small_for_numbers_have_a_colour_scale() -> None:
    values = np.random.default_rng(0).uniform(0, 1, (31, 30))
    names = TaskNames(tuple(str(i) for i in range(30)), "task")
    heat_map = HeatMap(values, 0.0, 1.0, TaskNames(("none", *names.names), "after"), names)
    panel = draw_heat_map("sgd", heat_map)
    axes = on_axes(panel)
    assert len(axes.child_axes) == 1
    assert not axes.artists
    canvas, frame = framed(panel)
    with matplotlib.style.context(["default", STYLE]):
        box = canvas.axes[0].child_axes[0].get_tightbbox(FigureCanvasAgg(canvas).get_renderer())
    assert box.x1 <= canvas.bbox.x1
    assert frame.inner[2] < frame.outer[2] - 72 * panel.beside
    assert len(to_svg(Figure("many", "many tasks", "caption", "alt.", (panel, panel)))) == 2
