"""Figures of made-up runs: every seed is drawn, an optimizer has one colour, and nothing is fetched."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from optbench.errors import StoreError
from optbench.plan import Trial
from optbench.report.figures import Figure, figure_kinds, save, to_svg
from optbench.report.figures.drawing import MAX_WIDTH
from optbench.report.figures.heat_maps import cosines, two_digits
from optbench.report.figures.placing import place_labels
from optbench.report.figures.series import MAX_SERIES, groups
from optbench.report.figures.spectrum import spectra
from optbench.report.figures.style import INK, MARKERS, PALETTE, SEEDS, look, power, short
from optbench.report.figures.texts import Labels
from optbench.report.figures.weight_magnitudes import magnitudes
from optbench.report.sparks import bar, spark
from optbench.stats.results import Results
from optbench.store import RunDirectory
from optbench.studies import STUDIES
from optbench.studies.tuning.figures import sweeps
from tests.made_runs import KEEPS, SUITE, Found, made_run
from tests.reports import figures, on_axes, seed_curves

NAMES = {
    "final-accuracy_permuted",
    "final-accuracy_pairs",
    "final-accuracy_decay",
    "final-accuracy_early",
    "spectrum_permuted",
    "spectrum_pairs",
    "spectrum_decay",
    "spectrum_early",
    *(
        f"{kind}_{place}"
        for kind in ("task-accuracy", "class-cosine", "accuracy-matrix", "pruning", "weight-magnitudes")
        for place in ("permuted_narrow", "permuted_wide", "pairs_narrow", "decay_narrow", "early_narrow")
    ),
    "against__decay__narrow__forgetting__effective_rank",
    "sweep_pairs_narrow_lr",
    "setting__decay__narrow__weight_decay",
    "switch_early_narrow_switched",
    "twins_early_narrow",
    "plasticity_permuted_narrow",
    "plasticity_permuted_wide",
    "plasticity_early_narrow",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return made_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def drawn(results: Results) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures([results])}


@pytest.fixture(scope="module")
def svgs(drawn: dict[str, Figure]) -> dict[str, tuple[str, ...]]:
    return {name: to_svg(figure) for name, figure in drawn.items()}


def seed_dots(figure: Figure) -> Iterator[tuple[float, float]]:
    for panel in figure.panels:
        for line in on_axes(panel).lines:
            if line.get_label() == SEEDS and line.get_linestyle() == "None":
                yield from zip(line.get_xdata(), line.get_ydata(), strict=True)


def seed_lines(figure: Figure) -> int:
    return sum(len(seed_curves(on_axes(panel))) for panel in figure.panels)


def test_every_kind_is_drawn_with_a_caption_and_a_text_alternative(drawn: dict[str, Figure]) -> None:
    assert set(drawn) == NAMES
    # Tested in test_readings_report.py, which has the six seeds needed, and in test_text_report.py.
    elsewhere = {"readings", "forgetting-curves"}
    assert {name.split("_")[0] for name in drawn} == {kind.name for kind in figure_kinds(STUDIES)} - elsewhere
    for figure in drawn.values():
        assert re.search(r"\b3 seeds\.", figure.caption), figure.caption
        assert re.search(r"\d\.\d", figure.alt), figure.alt
        assert figure.alt.endswith(".")
        assert figure.title
        assert all(panel.width <= MAX_WIDTH for panel in figure.panels)


def test_every_seed_is_a_dot_at_its_value(drawn: dict[str, Figure], results: Results) -> None:
    found = sorted(y for _, y in seed_dots(drawn["final-accuracy_permuted"]))
    expected = [results.matrices[trial.id][-1].mean() for trial in results.trials if trial.experiment == "permuted"]
    assert found == pytest.approx(sorted(expected))
    per_task = sorted(y for _, y in seed_dots(drawn["task-accuracy_permuted_narrow"]))
    rows = [results.matrices[t.id][-1] for t in results.trials if (t.experiment, t.model) == ("permuted", "narrow")]
    assert per_task == pytest.approx(sorted(np.concatenate(rows)))


def test_every_seed_is_a_line_in_spectra_and_pruning_curves(drawn: dict[str, Figure]) -> None:
    assert seed_lines(drawn["spectrum_permuted"]) == 2 * 2 * 3  # models, optimizers, seeds
    assert seed_lines(drawn["pruning_permuted_wide"]) == 2 * 2 * 3  # scopes, optimizers, seeds
    curves = seed_curves(on_axes(drawn["pruning_permuted_wide"].panels[0]))
    assert tuple(curves[0][:, 0]) == KEEPS


def test_seeds_at_the_same_position_do_not_overlap(drawn: dict[str, Figure]) -> None:
    xs = [round(float(x), 6) for x, _ in seed_dots(drawn["final-accuracy_permuted"])]
    assert len(set(xs)) == len(xs) == 12


def test_sweeps_show_every_measure_at_every_value(drawn: dict[str, Figure]) -> None:
    rates, decays = drawn["sweep_pairs_narrow_lr"], drawn["setting__decay__narrow__weight_decay"]
    assert [panel.heading.split(",")[0] for panel in rates.panels] == [
        "learning accuracy",
        "accuracy at the end",
        "forgetting",
        "last task at the end",
        "earlier tasks at the end",
        "rates",
    ]
    assert len(list(seed_dots(rates))) == 6 * 4 * 3  # panels, learning rates, seeds
    curve, against = on_axes(rates.panels[0]), on_axes(rates.panels[-1])
    assert curve.get_xscale() == "log"
    assert [text.get_text() for text in against.texts] == ["0.0001", "0.001", "0.01", "0.1"]
    assert [on_axes(panel).get_xscale() for panel in decays.panels] == ["symlog"] * 3, (
        "a value of 0 prevents a logarithmic axis"
    )
    assert decays.panels[2].heading.startswith("effective rank")
    assert "sgd" not in rates.caption


def test_a_sweep_varies_a_single_number(tmp_path: Path) -> None:
    text = SUITE.replace("weight_decay: [0.0, 0.01, 0.1]", "weight_decay: [0.0, 0.1], lr: [0.1, 0.01]")
    text = text.replace("lr: 0.1}", "nesterov: [true, false], momentum: 0.9, lr: 0.1}")
    found = [sweep for group in groups([made_run(tmp_path, text)]) for sweep in sweeps(group)]
    assert [(sweep.hyperparameter, sweep.series.label) for sweep in found] == [("lr", "rates")]
    assert [value for value, _ in found[0].points] == [0.0001, 0.001, 0.01, 0.1]


def test_heat_maps_show_the_means_over_seeds(drawn: dict[str, Figure], results: Results) -> None:
    figure = drawn["accuracy-matrix_permuted_narrow"]
    matrices = [results.matrices[f"permuted/narrow/sgd/default/seed={seed}"] for seed in range(3)]
    axes = on_axes(figure.panels[0])
    (numbers,) = (artist for artist in axes.artists if isinstance(artist, Labels))
    assert [label.text for label in numbers.labels] == [two_digits(v) for v in np.mean(matrices, axis=0).ravel()]
    known = cosines(results)
    mean = np.mean([known[f"permuted/narrow/sgd/default/seed={seed}"] for seed in range(3)], axis=0)
    panels = [on_axes(panel) for panel in drawn["class-cosine_permuted_narrow"].panels]
    cells = [next(c for c in axes.collections if isinstance(c, PolyCollection)) for axes in panels]
    assert np.asarray(cells[0].get_array()) == pytest.approx(mean.ravel())
    assert len({cell.get_clim() for cell in cells}) == 1, "all optimizers share a colour scale"


def test_spectra_are_read_at_the_end_over_all_tasks(results: Results) -> None:
    table = results.run.table("spectra").to_pylist()
    trial = "pairs/narrow/adam/default/seed=1"
    rows = [row for row in table if (row["trial"], row["after_task"], row["task"]) == (trial, 2, None)]
    values = np.array([row["eigenvalue"] for row in sorted(rows, key=lambda row: row["index"])])
    assert len(values) == 6
    assert spectra(results)[trial] == pytest.approx(values / values.sum())


def test_an_optimizer_has_one_colour_in_all_figures_and_all_series_look_different(results: Results) -> None:
    colours: dict[str, set[str]] = {}
    for group in groups([results]):
        looks = [look(series) for series in group.shown]
        assert len({(one.colour, one.marker, one.filled) for one in looks}) == len(looks)
        for series, one in zip(group.shown, looks, strict=True):
            colours.setdefault(series.arm.optimizer, set()).add(one.colour)
    assert [colours[name] for name in ("sgd", "adam", "rates", "decays")] == [{colour} for colour in PALETTE[:4]]


def test_colours_in_the_drawing_are_those_of_the_optimizers(drawn: dict[str, Figure]) -> None:
    for name in ("task-accuracy_permuted_narrow", "spectrum_permuted", "pruning_permuted_narrow"):
        lines = [line for line in on_axes(drawn[name].panels[0]).lines if str(line.get_label()).startswith("_m")]
        assert [line.get_color() for line in lines] == [PALETTE[0], PALETTE[1]], name
    sweep = [line.get_color() for line in on_axes(drawn["sweep_pairs_narrow_lr"].panels[0]).lines]
    assert sweep[0] == PALETTE[2]


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a: str, b: str) -> float:
    high, low = sorted([luminance(a), luminance(b)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#15181c"])
def test_every_colour_has_contrast_on_light_and_dark_pages(page: str) -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for colour in PALETTE:
        assert contrast(colour, page) >= 3, colour


def test_there_are_enough_distinct_colours_and_markers() -> None:
    assert len(set(PALETTE)) == len(set(MARKERS)) == len(PALETTE) == MAX_SERIES
    assert INK not in PALETTE


def test_many_optimizers_are_split_into_panels(tmp_path: Path) -> None:
    many = "".join(f"  o{i}: {{target: sgd, lr: {0.1 + i}}}\n" for i in range(10))
    text = (
        f"name: many\nseeds: 1\noptimizers:\n{many}experiments:\n  permuted:\n"
        "    tasks: {kind: permuted, count: 3}\n    models: {a: {kind: mlp}}\n"
    )
    result = made_run(tmp_path, text)
    found = {figure.name: figure for figure in figures([result])}
    for name in ("task-accuracy_permuted_a", "spectrum_permuted"):
        assert [len(panel.series) for panel in found[name].panels] == [5, 5], name
    first, second = (on_axes(panel) for panel in found["task-accuracy_permuted_a"].panels)
    assert first.get_ylim() == second.get_ylim(), "panels of a figure share their axes"
    looks = [look(series) for series in groups([result])[0].shown]
    assert len({(one.colour, one.marker, one.filled) for one in looks}) == 10
    assert "1 seed." in found["spectrum_permuted"].caption


def test_variants_omitted_from_a_long_sweep_are_listed(drawn: dict[str, Figure]) -> None:
    caption = drawn["task-accuracy_pairs_narrow"].caption
    assert "Left out: rates lr=0.001." in caption or "Left out: rates lr=0.01." in caption
    assert "Left out" not in drawn["sweep_pairs_narrow_lr"].caption


def test_diverged_failed_and_missing_seeds_are_listed_but_not_drawn(tmp_path: Path) -> None:
    ends = {"permuted/narrow/sgd/default/seed=0": "diverged", "permuted/narrow/sgd/default/seed=1": "failed"}
    ends["permuted/wide/adam/default/seed=2"] = "missing"

    def status(trial: Trial) -> str | None:
        end = ends.get(trial.id, "ok")
        return None if end == "missing" else end

    result = made_run(tmp_path, found=Found(status=status))
    found = {figure.name: figure for figure in figures([result])}
    assert len(list(seed_dots(found["final-accuracy_permuted"]))) == 12 - 3
    assert seed_lines(found["spectrum_permuted"]) == 12 - 3
    assert len(list(seed_dots(found["task-accuracy_permuted_narrow"]))) == 3 * (1 + 3)
    caption = found["final-accuracy_permuted"].caption
    for said in ("1 of 3 seeds of sgd at narrow diverged", "1 of 3 seeds of sgd at narrow failed", "1 to 3 seeds."):
        assert said in caption
    assert "1 of 3 seeds of adam at wide not finished" in caption


def test_a_single_seed_is_drawn_once(tmp_path: Path) -> None:
    result = made_run(tmp_path, SUITE.replace("seeds: 3", "seeds: 1"))
    found = {figure.name: figure for figure in figures([result])}
    assert set(found) == NAMES
    assert len(list(seed_dots(found["final-accuracy_permuted"]))) == 4
    assert all("1 seed." in figure.caption for figure in found.values())


@pytest.mark.parametrize("end", [None, "diverged", "failed"])
def test_a_run_without_a_good_trial_has_no_figures(tmp_path: Path, end: str | None) -> None:
    assert figures([made_run(tmp_path, found=Found(status=lambda trial: end))]) == []


def test_no_runs_have_no_figures() -> None:
    assert figures([]) == []


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("spectra", "spectrum"),
        ("similarity", "class-cosine"),
        ("pruning", ("pruning", "weight-magnitudes")),
        ("sketches", "twins"),
        ("online", "plasticity"),
    ],
)
def test_a_figure_without_its_table_is_omitted(tmp_path: Path, table: str, kind: str | tuple[str, ...]) -> None:
    names = {figure.name for figure in figures([made_run(tmp_path, found=Found(**{table: False}))])}
    assert names == {name for name in NAMES if not name.startswith(kind)}


def test_magnitudes_use_at_most_five_seeds_and_only_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    checkpoint = RunDirectory.checkpoint
    monkeypatch.setattr(RunDirectory, "checkpoint", lambda run, place: read.append(place) or checkpoint(run, place))
    series = groups([made_run(tmp_path, SUITE.replace("seeds: 3", "seeds: 7"))])[0].series[0]
    found = magnitudes(series)
    assert len(series.trials) == 7
    assert len(read) == 5
    assert found is not None
    assert 0.05 < found.median < 0.1, "the median is .67 for normal weights; biases of 1000 are ignored"


def test_several_runs_are_shown_side_by_side(tmp_path: Path) -> None:
    first, second = (made_run(tmp_path / name, name=name) for name in ("first", "second"))
    found = {figure.name: figure for figure in figures([first, second])}
    assert set(found) == NAMES
    assert len(list(seed_dots(found["final-accuracy_permuted"]))) == 24
    group = groups([first, second])[0]
    labels = ["sgd (first)", "adam (first)", "sgd (second)", "adam (second)"]
    assert [series.label for series in group.shown] == labels
    looks = [look(series) for series in group.shown]
    assert [one.colour for one in looks] == [PALETTE[0], PALETTE[1]] * 2
    assert all(looks[i].marker != looks[i + 2].marker and looks[i].line != looks[i + 2].line for i in (0, 1))


def test_svg_is_self_contained_and_inherits_the_colours_of_the_page(svgs: dict[str, tuple[str, ...]]) -> None:
    ids: list[str] = []
    for name, panels in svgs.items():
        for svg in panels:
            root = ElementTree.fromstring(svg)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert root.get("aria-label")
            for element in root.iter():
                assert element.tag.rpartition("}")[2] not in ("script", "style", "image", "foreignObject", "metadata")
                targets = [value for key, value in element.attrib.items() if key.endswith("href")]
                assert all(target.startswith("#") for target in targets)
                ids += [element.attrib["id"]] if "id" in element.attrib else []
            assert not re.search(r"url\((?!#)", svg)
            assert "currentColor" in svg
            assert INK not in svg
            assert "#ffffff" not in svg or name.startswith(("class-cosine", "accuracy-matrix"))
            assert "font-family" not in svg
            assert "DejaVu" not in svg
            references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
            assert references <= set(re.findall(r' id="([^"]+)"', svg)), "every reference has its target"
    assert len(set(ids)) == len(ids), "ids are unique on a page"
    lines = svgs["task-accuracy_permuted_narrow"][0]
    assert f"var(--c0, {PALETTE[0]})" in lines
    assert len(re.findall(PALETTE[0], lines)) == len(re.findall(r"var\(--c0", lines))


def test_text_in_a_panel_is_stored_as_text_and_large_enough(svgs: dict[str, tuple[str, ...]]) -> None:
    for name, panels in svgs.items():
        for svg in panels:
            sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
            assert sizes, name
            assert min(sizes) >= 8, name
    assert ">sgd</text>" in svgs["task-accuracy_permuted_narrow"][0]


def test_the_same_data_give_the_same_bytes(results: Results, tmp_path: Path) -> None:
    for name in ("final-accuracy_pairs", "accuracy-matrix_decay_narrow"):
        one, other = ({f.name: f for f in figures([results])}[name] for _ in range(2))
        assert to_svg(one) == to_svg(other)
        first, second = save(one, tmp_path / "a"), save(other, tmp_path / "b")
        assert {k: p.read_bytes() for k, p in first.items()} == {k: p.read_bytes() for k, p in second.items()}


def test_files_contain_all_panels_in_every_format(drawn: dict[str, Figure], tmp_path: Path) -> None:
    figure = drawn["sweep_pairs_narrow_lr"]
    files = save(figure, tmp_path / "new" / "folder")
    assert {suffix: path.name for suffix, path in files.items()} == {
        suffix: f"sweep_pairs_narrow_lr.{suffix}" for suffix in ("svg", "png", "pdf")
    }
    svg = files["svg"].read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    points = float(str(root.get("width")).removesuffix("pt"))
    assert points == pytest.approx(72 * max(sum(p.width for p in figure.panels[i : i + 3]) for i in (0, 3)))
    assert "<text" not in svg, "an SVG for a paper must not depend on the reader's fonts"
    assert len(re.findall(r'id="axes_\d+"', svg)) == len(figure.panels)
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    pdf = files["pdf"].read_bytes()
    assert b"/FontFile2" in pdf, "TrueType, not Type 3"
    assert b"CreationDate" not in pdf
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {path.name for path in files.values()}


def test_a_folder_that_cannot_be_created_is_reported(drawn: dict[str, Figure], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="file: cannot write"):
        save(drawn["final-accuracy_pairs"], tmp_path / "file", ("svg",))


def test_planning_figures_does_not_import_matplotlib_and_drawing_them_does_not_import_pyplot(results: Results) -> None:
    program = f"""
import sys
from pathlib import Path
from optbench.report.figures import figures, to_svg
from optbench.stats.results import read_results
from optbench.store import read_run
from optbench.studies import STUDIES
found = figures([read_results(read_run(Path({str(results.run.path)!r})))], STUDIES)
heavy = {{"matplotlib", "pandas", "scipy", "torch"}} & set(sys.modules)
assert not heavy, heavy
to_svg(found[0])
assert "matplotlib.pyplot" not in sys.modules
print(len(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(NAMES))), done.stderr


def test_labels_are_next_to_their_points_and_do_not_overlap() -> None:
    centres, texts = [(0.5, 0.5), (0.52, 0.5), (0.5, 0.51), (0.1, 0.9)], ["0.001", "0.01", "0.1", "1"]
    size = (200.0, 150.0)
    offsets = place_labels(centres, texts, [(0.0, 1.0), (0.0, 1.0)], size)
    boxes = []
    for (x, y), (dx, dy), text in zip(centres, offsets, texts, strict=True):
        half = 5.2 * len(text) / 2
        boxes.append((x * 200 + dx - half, y * 150 + dy - 5, x * 200 + dx + half, y * 150 + dy + 5))
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    for box in boxes:
        assert 0 <= box[0] < box[2] <= 200
        assert 0 <= box[1] < box[3] <= 150


@pytest.mark.parametrize(
    ("value", "text"), [(0.934, ".93"), (-0.121, "-.12"), (0.996, "1.0"), (0.004, "0"), (-0.001, "0"), (1.0, "1.0")]
)
def test_numbers_in_cells_are_short(value: float, text: str) -> None:
    assert two_digits(value) == text


def test_ticks_are_plain_text() -> None:
    assert [power(value) for value in (1.0, 10.0, 1e-3, 1e12, 0.5)] == ["1", "10¹", "10⁻³", "10¹²", "0.5"]
    assert [short(value) for value in (1e-5, 3.16e-5, 0.001, 50.0, 1e7)] == ["1e-5", "3.16e-5", "0.001", "50", "1e7"]


def test_sparklines_have_eight_heights() -> None:
    assert spark([i / 8 + 0.01 for i in range(8)]) == "▁▂▃▄▅▆▇█"
    assert spark([0.0, 1.0, -5.0, 5.0, math.inf, -math.inf, math.nan]) == "▁█▁██▁·"
    assert spark([]) == ""
    assert spark([10.0, 20.0], 10.0, 20.0) == "▁█"


def test_bars_grow_in_eighths_and_keep_their_width() -> None:
    bars = [bar(i / 16, 0.0, 1.0, 2) for i in range(17)]
    assert bars[:5] == ["  ", "▏ ", "▎ ", "▍ ", "▌ "]
    assert bars[8:11] == ["█ ", "█▏", "█▎"]
    assert bars[16] == "██"
    assert all(len(one) == 2 for one in bars)
    assert [bar(value, 0.0, 1.0, 3) for value in (-1.0, 9.0, math.nan)] == ["   ", "███", "·  "]
