"""Readings of claims in a report: a line in every format, all readings where there is room, a specification curve."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from optbench.cli import main
from optbench.metrics.own import metric_record, resolve
from optbench.plan import Trial
from optbench.report.figures import save, to_svg
from optbench.report.figures.readings import FAR, MOST_PARTS, PAD, Scale, drawn, readings
from optbench.stats.claims import judge_claims
from optbench.stats.readings import Says
from optbench.suite import load_suite
from tests.conftest import report
from tests.readings_runs import made
from tests.refusals import refusal
from tests.sent_runs import change_record
from tests.written_runs import results_of, rows_of, write_run

METRICS = ("effective_rank", "stable_rank", "pca99", "srank", "dead_share")
APART = {"effective_rank": 1.0, "stable_rank": 2.0, "pca99": -1.0, "srank": -0.05}
SAYS = {"lower": 2, "higher": 4, "open": 2, "undefined": 2}
SUMMARY = (
    "lower in 2, higher in 4, open in 2 of 8 readings; undefined in 2 more (descriptive: the cells are correlated)"
)


def value(trial: Trial, metric: str, data: str) -> float | None:
    if metric == "dead_share":
        return None
    spread = 0.1 * ((trial.seed * (2 if trial.optimizer == "a" else 1)) % 7)
    return 10 + spread + (APART[metric] if trial.optimizer == "a" else 0.0) + (0.1 if data == "last" else 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("read"), METRICS, value, data="pooled, last")


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex"])
def test_every_format_sums_up_the_readings(form: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.sub(r"\s+", " ", report(run, form, capsys).replace("\\", ""))
    assert f"claim 1, small: {SUMMARY}" in shown
    every = shown.count("stable rank")
    assert every >= (0 if form in ("terminal", "latex") else 2)
    if form == "terminal":
        assert "Every reading of the claims: --format markdown, html or json." in shown
        assert every == 0


def test_tables_are_not_widened_by_readings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = report(run, "markdown", capsys)
    tables = shown[: shown.index("<details>")]
    assert "Hoyer" in tables
    assert "effective" not in tables
    assert "| effective rank" in shown, "every measure is listed in the fold"


def test_listed_metrics_keep_their_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path, METRICS[:2], value)
    suite = path / "suite.yaml"
    text = suite.read_text(encoding="utf-8")
    assert "metrics: [hoyer]\n" in text
    suite.write_text(text.replace("[hoyer]", "[hoyer, effective_rank]", 1), encoding="utf-8")
    shown = report(path, "markdown", capsys)
    assert "effective rank" in shown[: shown.index("<details>")]


def test_sizes_of_features_are_not_shown_as_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes of features are stored with every measure of features."""
    suite = """
name: sizes
seeds: 2
optimizers: {a: {target: sgd, lr: 0.1}, b: {target: adam}}
experiments:
  one:
    tasks: {kind: permuted, count: 3}
    models: {m: {kind: mlp}}
    metrics: [{kind: effective_rank, activation: before}]
"""
    taken = {"effective_rank activation=before": 20.0, "features_n activation=before": 600.0}
    (tmp_path / "sizes.yaml").write_text(suite)
    own = load_suite(tmp_path / "sizes.yaml").experiments["one"].own_metrics.values()
    records = [metric_record(metric) for metric in resolve(own)]
    path = write_run(tmp_path, suite, lambda trial: rows_of(metrics=taken), metrics=records)
    shown = report(path, "markdown", capsys)
    tables, _, every = shown.partition("<details>")
    assert "rank activation=before" in tables.replace("<br>", " ")
    assert "features n" not in tables.replace("<br>", " ")
    assert "features n activation=before" in every
    assert main(["compare", f"{path}:a", f"{path}:b"]) == 0
    compared = capsys.readouterr().out
    assert "effective rank" in compared
    assert "features n" not in compared


def test_json_has_every_reading(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [claim] = json.loads(report(run, "json", capsys))["claims"]
    assert claim["metric"] == "effective_rank"
    assert claim["readings"] == {
        "metrics": list(METRICS),
        "layers": [{}],
        "data": ["pooled", "last"],
        "primary": {"metric": "effective_rank", "layer": {}, "data": "pooled"},
    }
    found = claim["parts"][0]["readings"]
    assert {key: n for key, n in found.items() if key != "cells"} == SAYS
    assert len(found["cells"]) == 10
    first = found["cells"][0]
    [part] = judge_claims(results_of(run))[0].parts
    assert (first["primary"], first["layer"]) == (True, {})
    assert (first["difference"], first["low"], first["high"]) == (part.result.difference, *(part.result.interval or ()))
    assert first["relative"] == pytest.approx(first["difference"] / first["median_b"])
    last = found["cells"][-1]
    assert (last["name"], last["data"], last["says"], last["relative"]) == ("dead_share", "last", "undefined", None)
    assert last["reason"] == "none of 8 pairs has a value on both sides"


def test_compare_omits_readings_unless_they_are_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    words = ["compare", "made:a", "made:b"]
    assert main([*words, "--all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "hoyer" in shown
    assert "stable rank" not in shown
    assert "Not shown: 4 metrics that are measured for readings of claims; --metric NAME shows one." in shown
    assert main([*words, "--metric", "stable_rank"]) == 0
    assert "stable rank" in capsys.readouterr().out
    assert main([*words, "--format", "json"]) == 0
    assert "stable_rank" in {row["metric"] for row in json.loads(capsys.readouterr().out)["results"]}


def test_the_curve_is_sorted_and_marks_the_choices_of_each_reading(run: Path) -> None:
    results = results_of(run)
    [part] = judge_claims(results)[0].parts
    points = drawn(part)
    assert [p.effect for p in points] == sorted(p.effect for p in points)
    assert len(points) == 8
    [figure] = readings([results])
    assert figure.name == "readings_c"
    assert SUMMARY in figure.alt
    assert " 8 seeds." in figure.caption
    assert "Not drawn because there is no bounded interval or the right median is 0" in figure.caption
    assert "dead share, dead share on the last task of small." in figure.caption
    from matplotlib.figure import Figure as Canvas

    [panel] = figure.panels
    axes = Canvas().add_axes((0, 0, 1, 1))
    panel.draw(axes)
    shown: dict[str, list[tuple[float, float]]] = {}
    for line in axes.lines:
        shown.setdefault(str(line.get_label()), []).extend(map(tuple, line.get_xydata().tolist()))
    effects = sorted(shown["_effects"])
    assert [x for x, _ in effects] == list(range(8))
    assert [y for _, y in effects] == sorted(y for _, y in effects)
    rows = axes.yaxis.get_major_formatter().seq  # type: ignore[attr-defined]
    places = dict(zip(rows, axes.yaxis.get_majorticklocs().tolist(), strict=True))
    assert [row for row in rows if "%" not in row] == [
        *("effective rank", "stable rank", "pca99", "srank", "dead share"),
        *("all tasks pooled", "last task"),
    ]
    for x, point in enumerate(points):
        marked = {y for at, y in shown["_marks"] if at == x}
        data = {"pooled": "all tasks pooled", "last": "last task"}[point.reading.cell.data]
        assert marked == {places[point.reading.cell.metric.replace("_", " ")], places[data]}
    [band] = axes.patches
    [primary] = [x for x, point in enumerate(points) if point.reading.primary]
    assert band.get_extents().transformed(axes.transData.inverted()).x0 == pytest.approx(primary - 0.5)


def test_the_figure_is_in_the_page_and_in_files(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "<strong>c: every reading.</strong>" in report(run, "html", capsys)
    [figure] = readings([results_of(run)])
    assert {suffix for suffix, file in save(figure, tmp_path).items() if file.stat().st_size} == {"svg", "png", "pdf"}
    [svg] = to_svg(figure)
    assert svg.count(">last task<") == 1


def test_a_claim_with_many_parts_has_panels_for_the_first_ones(tmp_path: Path) -> None:
    rates = str([0.01 * i for i in range(1, 15)])
    [figure] = readings([results_of(made(tmp_path, METRICS[:2], value, rates=rates, seeds=6))])
    assert len(figure.panels) == MOST_PARTS
    assert "Only the first 12 of 14 parts are shown." in figure.caption


def test_layers_have_separate_rows_and_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("srank", "srank activation=before", "srank delta=0.1", "srank delta=0.1,activation=before")
    path = made(
        tmp_path,
        ("srank", "{kind: srank, delta: 0.1}"),
        lambda trial, metric, _: 10.0 + names.index(metric) + (trial.optimizer == "a"),
        measured=names,
        layers="[{}, {activation: before}]",
    )
    shown = report(path, "markdown", capsys)
    rows = re.findall(r"^\| (srank\S*(?: delta=0.1)?)(?: \\\*)? +\| (\S+(?: before)?) +\| higher", shown, re.MULTILINE)
    assert rows == [(m, layer) for m in ("srank", "srank delta=0.1") for layer in ("features", "activation before")]
    [claim] = json.loads(report(path, "json", capsys))["claims"]
    assert [cell["layer"] for cell in claim["parts"][0]["readings"]["cells"]] == [{}, {"activation": "before"}] * 2
    assert [cell["median_b"] for cell in claim["parts"][0]["readings"]["cells"]] == [10.0, 11.0, 12.0, 13.0]


def test_two_runs_have_a_figure_each(run: Path, tmp_path: Path) -> None:
    other = made(tmp_path, METRICS[:1], value, name="other")
    names = [figure.name for figure in readings([results_of(run), results_of(other)])]
    assert names == ["readings_c_made", "readings_c_other"]


def test_a_wide_interval_is_clipped_and_a_large_effect_bends_the_axis(tmp_path: Path) -> None:
    def wide(trial: Trial, metric: str, data: str) -> float:
        if metric == "stable_rank" and trial.optimizer == "a":
            return 10.0 + (-1) ** trial.seed * 8.0
        return 10.0 + 0.01 * trial.seed + (1.0 if trial.optimizer == "a" else 0.0)

    more = ("participation_ratio", "effective_rank_sv", "class_cosine_mean", "pairwise_class_cosine", "dormant_0.1")
    metrics = (*METRICS, *more, "effective_rank_ratio")
    [figure] = readings([results_of(made(tmp_path, metrics, wide))])
    assert "Intervals that extend beyond the axis are cut off." in figure.caption
    assert "logarithmic" not in figure.caption

    def many(trial: Trial, metric: str, data: str) -> float:
        return 10.0 + 0.01 * trial.seed + (100.0 if trial.optimizer == "a" and metric == "pca99" else 0.0)

    [figure] = readings([results_of(made(tmp_path, METRICS[:4], many, name="many"))])
    assert "linear around 0 and logarithmic far from it" in figure.caption


@pytest.mark.parametrize(("low", "high"), [(-0.5, 1.5), (-0.01, 0.02), (-1.0, 40.0), (-3.0, 0.5)])
def test_the_axis_is_increasing_with_round_well_spaced_ticks(low: float, high: float) -> None:
    scale = Scale(low, high)
    assert scale.bent == (max(-low, high) > FAR)
    ticks = scale.ticks()
    assert 0.0 in ticks
    places = [scale.place(tick) for tick in ticks]
    assert all(b - a > 0.12 for a, b in itertools.pairwise(places)), ticks
    assert len(ticks) >= 3
    assert scale.place(low) == pytest.approx(PAD)


def test_readings_without_values_are_not_drawn(tmp_path: Path) -> None:
    path = made(tmp_path, METRICS, lambda *_: None)
    assert readings([results_of(path)]) == []
    assert {r.says for r in judge_claims(results_of(path))[0].parts[0].readings} == {Says.UNDEFINED}


def test_a_record_that_lacks_a_metric_of_a_reading_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path, ("srank", "{kind: srank, delta: 0.1}"), lambda *_: 1.0, measured=("srank", "srank delta=0.1"))
    change_record(path, lambda record: record.pop("metrics"))
    said = refusal(capsys, tmp_path, "report", path)
    assert said.endswith(
        "run.json: metrics: expected a description of 'srank delta=0.1', which claims.c uses, got none"
    )
