"""Twins, from the suite to the reports, against distances computed from the weights."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from optbench.cli import main
from optbench.data import Dataset, InputSpec
from optbench.engine import TrialResult
from optbench.errors import SuiteError
from optbench.models import build, initialise
from optbench.plan import Trial, cohorts, complete, trials
from optbench.report import run_report
from optbench.report.document import Items, Table
from optbench.report.formats import render_text
from optbench.selection import Choice, choose
from optbench.stats.results import Results
from optbench.store import RunWriter, read_run
from optbench.store.columns import vectors
from optbench.store.tables import CurveRow, Row, SketchRow
from optbench.streams import generator
from optbench.studies.twins.statistics import START, Moment, Twins, evenly, sketches, twins
from optbench.studies.twins.tables import TITLE, place_text
from optbench.suite import Suite, dump_suite, load_suite, suite_hash
from tests.conftest import FORMATS, run_file, same_bits, small_suite, train_suite
from tests.reports import figures, on_axes, report_csv, report_json, seed_curves, summarise
from tests.written_runs import results_of, rows_of, trial_row, write_run

SUITE = """
name: twins
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam, lr: 3.0e-3}
  same: {target: sgd, lr: 0.1}
  wild: {target: sgd, lr: 1.0e+9}
  rates: {target: sgd, lr: [0.1, 0.2]}
  alone: {target: sgd, lr: 0.2}
experiments:
  one:
    tasks: {kind: permuted, count: 1}
    models: {net: {kind: mlp, hidden: [12]}}
    protocol: {batch_size: 32, max_epochs: 2, evaluate_every: 0.5, early_stopping: null, train_examples: 640,
               test_examples: 200, validation_examples: 100}
    pairs: {against: [sgd], metrics: [weight_distance]}
    twins: [[sgd, adam], [same, sgd], [sgd, wild], [adam, rates]]
  two:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [12]}}
    protocol: {batch_size: 32, max_epochs: 2, evaluate_every: 0.25, early_stopping: {patience: 1}, train_examples: 640,
               test_examples: 200, validation_examples: 100}
    optimizers: [sgd, adam]
    twins: [[adam, sgd]]
"""
STEPS = [10, 20, 30, 40]
FOLLOWED = {"sgd", "adam", "same", "wild", "rates"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_file(tmp_path_factory.mktemp("twins"), SUITE)


@pytest.fixture(scope="module")
def results(path: Path) -> Results:
    return results_of(path)


def found_twins(results: Results) -> dict[tuple[str, str], Twins]:
    return {(found.experiment, found.label): found for found in twins(results)}


# Recording


def test_the_named_optimizers_are_recorded_at_the_start_and_at_every_evaluation(path: Path, results: Results) -> None:
    table = pd.read_parquet(path / "sketches.parquet")
    curves = pd.read_parquet(path / "curves.parquet")
    assert set(table.optimizer) == FOLLOWED
    assert "control" in set(curves.stage)
    assert set(table.stage) == {"eval"}, "controls belong to no arm"
    for trial, rows in table.groupby("trial"):
        evaluated = curves[curves.trial == trial]
        expected = [START, *zip(evaluated.task, evaluated.step, strict=True)]
        assert list(zip(rows.task, rows.step, strict=True)) == expected
        assert len(rows) > 2 or "/wild/" in str(trial)
    assert all(len(sketch) == 1024 and sketch.dtype == np.float32 for sketch in table.sketch)
    starts = table[table.step == 0].groupby(["experiment", "seed"]).sketch
    assert all(len({sketch.tobytes() for sketch in group}) == 1 for _, group in starts)
    assert set(sketches(results)) == set(table.trial)


def exact_distance(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor) -> float:
    return float(2 * (a - b).norm() / ((a - start).norm() + (b - start).norm()))


def test_the_last_distances_agree_with_the_checkpoints(path: Path, results: Results) -> None:
    network = build(results.suite.experiments["one"].models["net"], InputSpec((1, 28, 28)), 10)
    names = sorted(dict(network.named_parameters()))
    found = found_twins(results)["one", "sgd and adam"]
    pairs = pd.read_parquet(path / "pairs.parquet").query("optimizer_a == 'sgd' and optimizer_b == 'adam'")
    assert list(found.distances) == [0, 1]
    for seed, distances in found.distances.items():
        assert list(distances) == [(1, step) for step in STEPS]
        weights = initialise(network, generator(results.suite.seed, seed, "initial weights"))
        start = torch.cat([weights[name].double().flatten() for name in names])
        ends = []
        for optimizer in ("sgd", "adam"):
            kept = load_file(path / "checkpoints" / f"one__net__{optimizer}__default__seed={seed}.safetensors")
            ends.append(torch.cat([kept[name].double().flatten() for name in names]))
        exact = exact_distance(*ends, start)
        assert 0.3 < exact < 2
        assert distances[1, 40] == pytest.approx(exact, rel=0.1)
        assert distances[1, 40] != exact, "the distance is read from sketches"
        assert pairs[pairs.seed == seed].value.item() == pytest.approx(exact)


def with_twins(suite: Suite, pairs: list[list[str]] | None, **protocol: Any) -> Suite:
    content = suite.model_dump()
    content["experiments"]["small"]["twins"] = pairs
    content["experiments"]["small"]["protocol"] |= protocol
    return complete(Suite.model_validate(content))


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"target": "sgd", "lr": 0.1},
    "power": {"target": "powerpropagation", "alpha": 2.0, "base": {"target": "sgd", "lr": 0.1}},
}
"""One optimizer for each of two lanes."""


def recorded(result: TrialResult) -> dict[Moment, np.ndarray]:
    return {(row.task, row.step): np.array(row.sketch) for row in result.rows if isinstance(row, SketchRow)}


def flat(result: TrialResult) -> torch.Tensor:
    assert result.weights is not None
    return torch.cat([weight.double().flatten() for weight in result.weights.values()])


def test_intermediate_distances_agree_with_shorter_trainings(mnist: Dataset) -> None:
    suite = small_suite(OPTIMIZERS, tasks={"kind": "permuted", "count": 1}, seeds=1, early_stopping=None)
    followed = [["sgd", "power"]]
    long = [recorded(result) for result in train_suite(with_twins(suite, followed), mnist)]
    assert [list(places) for places in long] == [[(1, step) for step in (0, 12, 24, 36, 48, 50)]] * 2
    network = build(suite.experiments["small"].models["net"], InputSpec((1, 28, 28)), 10)
    weights = initialise(network, generator(suite.seed, 0, "initial weights"))
    for step in (12, 36):
        ends = [flat(result) for result in train_suite(with_twins(suite, followed, max_steps=step), mnist)]
        start = torch.cat([weight.double().flatten() for weight in weights.values()])
        ways = [np.linalg.norm(places[1, step] - places[START]) for places in long]
        for way, end in zip(ways, ends, strict=True):
            assert way == pytest.approx(float((end - start).norm()), rel=0.1)
        apart = 2 * np.linalg.norm(long[0][1, step] - long[1][1, step]) / sum(ways)
        assert apart == pytest.approx(exact_distance(*ends, start), rel=0.1)


def test_sketches_of_a_trial_alone_equal_those_in_a_cohort(mnist: Dataset) -> None:
    suite = with_twins(small_suite(OPTIMIZERS, seeds=2), [["sgd", "power"]])
    together = train_suite(suite, mnist)
    for i in (0, 3):
        alone = train_suite(suite, mnist, only=i)[0]
        assert len(recorded(alone)) > 3
        assert same_bits(alone, together[i])


def test_recording_sketches_does_not_change_other_rows(mnist: Dataset) -> None:
    suite = small_suite(OPTIMIZERS, seeds=1)
    plain = train_suite(suite, mnist)
    followed = train_suite(with_twins(suite, [["sgd", "power"]]), mnist)
    for one, other in zip(plain, followed, strict=True):
        assert not recorded(one)
        assert len(recorded(other)) == 1 + sum(isinstance(row, CurveRow) for row in other.rows)
        rows = tuple(row for row in other.rows if not isinstance(row, SketchRow))
        assert same_bits(one, TrialResult(other.trial, rows, other.weights))


# Reading


def test_a_trial_has_distance_zero_from_itself(results: Results) -> None:
    found = found_twins(results)["one", "same and sgd"]
    assert found.places == tuple((1, step) for step in STEPS)
    assert [found.at(place) for place in found.places] == [[0.0, 0.0]] * 4


def test_pairs_without_distances_have_a_reason(results: Results) -> None:
    found = found_twins(results)
    assert found["one", "sgd and wild"].reason == "no seed on which both trials are ok"
    assert found["one", "adam and rates"].reason == "rates has 2 settings; twins need one each"
    assert {key for key, one in found.items() if not one.reason} == {
        ("one", "sgd and adam"),
        ("one", "same and sgd"),
        ("two", "adam and sgd"),
    }
    assert all(bool(one.distances) == (not one.reason) for one in found.values())


def test_only_shared_evaluations_count_if_one_twin_stops_early(path: Path, results: Results) -> None:
    found = found_twins(results)["two", "adam and sgd"]
    curves = pd.read_parquet(path / "curves.parquet").query("experiment == 'two'")
    for seed, distances in found.distances.items():
        places = [
            set(rows[["task", "step"]].itertuples(index=False, name=None))
            for _, rows in curves[curves.seed == seed].groupby("optimizer")
        ]
        assert list(distances) == sorted(places[0] & places[1])
        assert {task for task, _ in distances} == {1, 2}
        assert all(0 < value < 2 for value in distances.values())


def test_vectors_are_read_from_filtered_and_concatenated_columns() -> None:
    import pyarrow as pa

    rows = [[float(i), float(-i), 0.5] for i in range(7)]
    table = pa.table({"i": range(7), "v": pa.array(rows, pa.list_(pa.float32()))})
    kept = pa.concat_tables([table.slice(2, 3), table.filter(pa.compute.equal(table["i"], 0)), table.slice(6)])
    assert vectors(kept["v"]).tolist() == [rows[i] for i in (2, 3, 4, 0, 6)]
    assert vectors(table.slice(0, 0)["v"]).shape == (0, 0)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, []), (1, [0]), (2, [0, 1]), (5, [0, 1, 2, 3, 4]), (9, [0, 2, 4, 6, 8]), (41, [0, 10, 20, 30, 40])],
)
def test_five_places_are_spread_evenly(count: int, chosen: list[int]) -> None:
    places = [(1 + i // 6, 10 * (i % 6) + 10) for i in range(count)]
    assert evenly(reversed(places), 5) == [places[i] for i in chosen]


# Hand-computed examples

MADE = """
name: made
seeds: 4
optimizers:
  a: {target: sgd, lr: 0.1}
  b: {target: sgd, lr: 0.2}
  c: {target: sgd, lr: 0.3}
experiments:
  here:
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [10]}}
    twins: [[a, b], [a, c]]
"""
PATHS: dict[str, list[tuple[Moment, tuple[float, ...]]]] = {
    "a": [
        ((1, 0), (1, 1)),
        ((1, 5), (4, 5)),
        ((1, 10), (1, 6)),
        ((2, 5), (1, 11)),
    ],  # lengths of 5, 5, 10 from the start
    "b": [((1, 0), (1, 1)), ((1, 5), (1, 6)), ((1, 10), (1, -4)), ((2, 5), (1, 11))],  # lengths of 5, 5, 10 as well
    "c": [((1, 0), (1, 1)), ((1, 5), (1, 1)), ((1, 10), (1.003, 6))],
}
# a and b are √10 / 5, √100 / 5 and 0 apart; c first has not moved and then is .003 / 5 from a.


def made(folder: Path, ends: dict[str, str] | None = None) -> Path:
    """Write a run in which seed 3 of b ends at its second evaluation. ends: statuses by 'optimizer seed'."""

    def rows(trial: Trial) -> Sequence[Row]:
        status = (ends or {}).get(f"{trial.optimizer} {trial.seed}", "ok")
        if status == "missing":
            return []
        found = PATHS[trial.optimizer][: 3 if (trial.optimizer, trial.seed) == ("b", 3) else None]
        return [*rows_of(status, [[0.1, 0.1]] * 3), *(SketchRow(*place, sketch) for place, sketch in found)]

    return write_run(folder, MADE, rows)


def test_distances_agree_with_hand_computed_values(tmp_path: Path) -> None:
    first, second = twins(results_of(made(tmp_path)))
    assert first.distances[0] == pytest.approx({(1, 5): math.sqrt(10) / 5, (1, 10): 2, (2, 5): 0})
    assert list(first.distances[3]) == [(1, 5), (1, 10)]
    assert (len(first.at((2, 5))), len(first.last), first.last[3]) == (3, 4, 2)
    assert first.size == 2
    assert second.distances[0] == pytest.approx({(1, 5): 2, (1, 10): 0.003 / 5}, rel=1e-3)


def test_the_table_agrees_with_hand_computed_values(tmp_path: Path) -> None:
    path = made(tmp_path, {"c 0": "diverged", "c 1": "missing"})
    table = twins_table(path)
    titles = [column.title.replace("\n", " ").strip() for column in table.columns]
    # A column needs most seeds of most pairs; at the last evaluation 3 of 6 are left.
    assert titles == ["twins", "seeds", "task 1 step 5", "task 1 step 10", "last shared"]
    text = [[cell.text for cell in row] for row in table.rows]
    assert text[0] == ["a and b", "4", "0.632±0.000", "2.000±0.000", "0.500±1.000"]
    assert text[1] == ["a and c", "2 of 4", "2.00000±0.00000", "0.00060±0.00000", "0.00060±0.00000"]
    assert table.rows[1][1].tone == "warning"
    blocks = run_report(summarise([results_of(path)])).blocks
    legend = blocks[blocks.index(table) + 1]
    assert isinstance(legend, Items)
    assert "sketches of 2 numbers, with an error of about 50%" in legend.items[-1]


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ({}, "no seed on which both trials are ok has sketches of both"),
        (
            {"b": slice(1, None)},
            "no seed on which both trials are ok has sketches of both at the start and at a common evaluation after it",
        ),
        (
            {"b": slice(1)},
            "no seed on which both trials are ok has sketches of both at the start and at a common evaluation after it",
        ),
    ],
    ids=["no sketches", "none of the start", "only the start"],
)
def test_missing_sketches_are_given_as_the_reason(tmp_path: Path, kept: dict[str, slice], reason: str) -> None:
    def rows(trial: Trial) -> Sequence[Row]:
        found = PATHS[trial.optimizer][{"a": slice(None), **kept}.get(trial.optimizer, slice(0))]
        return [*rows_of("ok", [[0.1, 0.1]] * 3), *(SketchRow(*place, sketch) for place, sketch in found)]

    (pair,) = twins(results_of(write_run(tmp_path, MADE.replace("[[a, b], [a, c]]", "[[a, b]]"), rows)))
    assert (pair.distances, pair.size, pair.reason) == ({}, 0, reason)


def twins_table(path: Path) -> Table:
    document = run_report(summarise([results_of(path)]))
    return next(block for block in document.blocks if isinstance(block, Table) and "twins" in block.caption)


def test_cells_give_n_when_some_seeds_have_stopped(tmp_path: Path) -> None:
    def rows(trial: Trial) -> Sequence[Row]:
        stopped = (trial.optimizer, trial.seed) == ("b", 3)
        found = [*PATHS[trial.optimizer], ((2, 9), (1, 11))]
        return [*rows_of("ok", [[0.1, 0.1]] * 3), *(SketchRow(*place, s) for place, s in found[: 3 if stopped else 5])]

    table = twins_table(write_run(tmp_path, MADE.replace("[[a, b], [a, c]]", "[[b, a]]"), rows))
    cells = [cell.text for cell in table.rows[0]]
    assert cells == ["b and a", "4", "0.632±0.000", "2.000±0.000", "0.000±0.000 (n=3)", "0.500±1.000"]


def test_evaluations_are_named_with_their_task_if_there_are_several() -> None:
    assert place_text((1, 30), 1) == "step 30"
    assert place_text((1, 30), 2) == "task 1, step 30"


# The reports


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_shows_the_distances(
    path: Path, results: Results, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["report", str(path), "--format", form]) == 0
    text = " ".join(capsys.readouterr().out.split())
    found = found_twins(results)["one", "sgd and adam"]
    values = found.at((1, 40))
    if form in ("csv", "json"):
        assert repr(float(np.mean(values))) in text
        return
    assert (
        f"{np.mean(values):.3f}±{np.std(values, ddof=1):.3f}".replace("±", "$\\pm$" if form == "latex" else "±") in text
    )
    assert TITLE in text
    assert "rates has 2 settings; twins need one each" in text
    assert "estimated from sketches of 1,024 numbers, with an error of about 2" in text


def test_records_have_every_evaluation(results: Results) -> None:
    summary = summarise([results])
    told = {(r["experiment"], r["a"], r["b"]): r for r in json.loads(report_json(summary))["twins"]}
    lines = [row for row in csv.DictReader(io.StringIO(report_csv(summary))) if row["pair_kind"] == "twins"]
    known = [one for one in twins(results) if one.distances]
    assert len(told) == 5
    assert told["one", "adam", "rates"]["reason"]
    assert told["one", "adam", "rates"]["points"] == []
    assert len(lines) == sum(len(one.places) for one in known)
    for one in known:
        record = told[one.experiment, one.a, one.b]
        assert (record["metric"], record["planned"], record["sketch_size"]) == ("weight_distance", 2, 1024)
        here = [
            row
            for row in lines
            if (row["experiment"], row["optimizer"], row["optimizer_b"]) == (one.experiment, one.a, one.b)
        ]
        for place, point, row in zip(one.places, record["points"], here, strict=True):
            assert (point["task"], point["step"]) == place == (int(row["task"]), int(row["step"]))
            assert point["mean"] == pytest.approx(np.mean(one.at(place)))
            assert float(row["mean"]) == point["mean"]
            assert int(row["n"]) == point["n"] == len(one.at(place))


def test_the_figure_has_a_line_for_every_seed_and_for_the_mean(results: Results) -> None:
    drawn = {figure.name: figure for figure in figures([results]) if figure.name.startswith("twins")}
    assert list(drawn) == ["twins_one_net", "twins_two_net"]
    found = found_twins(results)
    assert all(len(figure.panels) == 1 for figure in drawn.values())
    axes = [on_axes(figure.panels[0]) for figure in drawn.values()]
    lines = [seed_curves(one) for one in axes]
    pair = found["two", "adam and sgd"]
    assert len(lines[0]) == 4
    assert np.allclose(
        lines[0][0], [(step, value) for (_, step), value in found["one", "sgd and adam"].distances[0].items()]
    )
    longest = max(step for task, step in pair.places if task == 1)
    for line, distances in zip(lines[1], pair.distances.values(), strict=True):
        assert np.allclose(line, [(longest * (task - 1) + step, value) for (task, step), value in distances.items()])
    (means,) = (line.get_xydata() for line in axes[1].lines if line.get_label() == "_mean")
    shared = [place for place in pair.places if len(pair.at(place)) == 2]
    assert np.allclose(means[:, 1], [np.mean(pair.at(place)) for place in shared])
    assert "sketches of 1,024 numbers" in drawn["twins_one_net"].caption
    assert f"sgd and adam at step 40 {np.mean(found['one', 'sgd and adam'].last):.3f}" in drawn["twins_one_net"].alt


def test_distances_of_different_sizes_have_a_logarithmic_axis(tmp_path: Path) -> None:
    (figure,) = (figure for figure in figures([results_of(made(tmp_path))]) if figure.name.startswith("twins"))
    axes = on_axes(figure.panels[0])
    assert axes.get_yscale() == "log"
    assert "A distance of 0 cannot be shown on the logarithmic axis." in figure.caption
    curves = seed_curves(axes)
    assert curves
    assert all(np.nanmin(curve[:, 1]) > 0 for curve in curves)


# Suites and runs


def test_runs_without_twins_have_no_table_and_parts_keep_sketches(tmp_path: Path) -> None:
    plain = write_run(
        tmp_path, MADE.replace("    twins: [[a, b], [a, c]]\n", ""), lambda trial: [trial_row()], name="plain"
    )
    assert not (plain / "sketches.parquet").exists()
    assert read_run(plain).table("sketches").num_rows == 0
    assert twins(results_of(plain)) == []
    assert TITLE not in render_text(run_report(summarise([results_of(plain)])), "markdown").splitlines()

    suite = complete(load_suite(tmp_path / "plain.yaml"))
    planned = trials(suite)
    writer = RunWriter.create(tmp_path / "parts", dump_suite(suite), {}, planned)
    sketched = {}
    for i, cohort in enumerate(cohorts(planned)):
        rows: list[tuple[Trial, Row]] = [(trial, trial_row()) for trial in cohort.trials]
        if i != 1:
            sketched |= {trial.id: (0.25, float(trial.seed)) for trial in cohort.trials}
            rows += [(trial, SketchRow(1, 0, sketched[trial.id])) for trial in cohort.trials]
        writer.add(cohort, rows)

    def kept() -> dict[str, tuple[float, ...]]:
        table = read_run(tmp_path / "parts").table("sketches")
        return dict(zip(table["trial"].to_pylist(), map(tuple, table["sketch"].to_pylist()), strict=True))

    assert kept() == sketched
    writer.finish("interrupted")
    assert kept() == sketched
    RunWriter.resume(tmp_path / "parts", {}, [], planned, [], {}).finish("complete")
    assert kept() == sketched
    assert not (tmp_path / "parts" / "parts").exists()


@pytest.mark.parametrize(
    ("given", "column", "message"),
    [
        ("[[a, bb]]", 17, "experiments.here.twins: unknown optimizer in here 'bb'; did you mean 'b'? (valid: a, b, c)"),
        ("[[a, b], [c, c]]", 12, "experiments.here.twins: expected two optimizers, got 'c' twice"),
        ("[[a, b], [b, a]]", 12, "experiments.here.twins: the pair 'a and b' is listed twice"),
        ("[[a]]", 13, "experiments.here.twins.0: expected two optimizers, as in [sgd, adam], got 1"),
        ("[[a, b, c]]", 13, "experiments.here.twins.0: expected two optimizers, as in [sgd, adam], got 3"),
        ("[a, b]", 13, "experiments.here.twins.0: expected a list, got 'a'"),
        ("[]", 12, "experiments.here.twins: expected at least 1 entry, got 0"),
    ],
)
def test_wrong_twins_are_refused_with_their_place(tmp_path: Path, given: str, column: int, message: str) -> None:
    file = tmp_path / "made.yaml"
    file.write_text(MADE.replace("[[a, b], [a, c]]", given), encoding="utf-8")
    line = 1 + MADE.splitlines().index("    twins: [[a, b], [a, c]]")
    with pytest.raises(SuiteError) as error:
        load_suite(file)
    assert str(error.value).splitlines()[0] == f"{file}:{line}:{column}: {message}"


def test_suites_without_twins_keep_their_hash_and_unselected_twins_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "made.yaml"
    file.write_text(MADE, encoding="utf-8")
    suite = load_suite(file)
    (tmp_path / "again.yaml").write_text(dump_suite(suite), encoding="utf-8")
    assert load_suite(tmp_path / "again.yaml") == suite
    here = suite.experiments["here"]
    none = suite.model_copy(update={"experiments": {"here": here.model_copy(update={"twins": None})}})
    file.write_text(MADE.replace("    twins: [[a, b], [a, c]]\n", ""), encoding="utf-8")
    assert suite_hash(load_suite(file)) == suite_hash(none) != suite_hash(suite)
    kept = {names: choose(tmp_path / "again.yaml", Choice(optimizers=names)) for names in (("a", "c"), ("b", "c"))}
    assert [chosen.experiments["here"].twins for chosen in kept.values()] == [[["a", "c"]], None]
