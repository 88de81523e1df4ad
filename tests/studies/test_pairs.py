"""Comparing pairs of solutions, from the suite to the reports, against values recomputed in plain torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import Workspace
from optbench.engine.batches import BatchStream
from optbench.engine.solutions import compare
from optbench.execution.schedule import make_plan
from optbench.execution.session import Options, run
from optbench.metrics import METRICS, PAIR_METRICS
from optbench.models import build, initialise
from optbench.plan import Trial, cohorts, comparisons, complete, trials
from optbench.stats.results import read_results
from optbench.store import RunWriter, read_run
from optbench.store.pairs_table import NOT_COMPARED, PairRow, settled_pairs
from optbench.store.tables import TABLES
from optbench.streams import generator
from optbench.studies.pairs.statistics import Measured, solution_pairs
from optbench.suite import Suite, dump_suite, load_suite, suite_hash
from optbench.tasks import Examples, TaskFamily, TaskSequence
from tests.conftest import CLOCK, FORMATS, report, run_file, small_suite
from tests.execution.test_runs import Silent
from tests.written_runs import rows_of

PLAIN = """
name: compared
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.1}
  adam: {target: adam, lr: 3.0e-3}
  wild: {target: sgd, lr: 1.0e+9}
experiments:
  halves:
    tasks: {kind: class-incremental, group_size: 5}
    models: {net: {kind: mlp, hidden: [24]}}
    protocol: {batch_size: 32, max_epochs: 1, early_stopping: null, train_examples: 3200, test_examples: 2500,
               validation_examples: 100}
    metrics: [effective_rank]
"""
SUITE = f"{PLAIN}    pairs: {{controls: [sgd, adam]}}\n"
KEYS = ["trial_a", "trial_b", "metric"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return run_file(folder, SUITE)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """Return the run of the same suite without `pairs`."""
    return run_file(folder, PLAIN, "plain")


@pytest.fixture(scope="module")
def table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path / "pairs.parquet")


# Which pairs are compared


def test_every_pair_of_arms_and_every_null_is_compared_once(table: pd.DataFrame) -> None:
    assert not table.duplicated(KEYS).any()
    for _, rows in table.groupby("seed"):
        found = rows[["kind", "optimizer_a", "optimizer_b"]].drop_duplicates().values.tolist()
        assert sorted(found) == [
            ["null", "adam", "adam"],
            ["null", "sgd", "sgd"],
            ["pair", "adam", "wild"],
            ["pair", "sgd", "adam"],
            ["pair", "sgd", "wild"],
        ]
        assert set(rows.metric) == set(PAIR_METRICS)
        assert len(rows) == 5 * len(PAIR_METRICS)
    null = table[table.kind == "null"]
    assert (null.trial_b == null.trial_a + "/order=1").all()
    assert list(table.experiment.unique()) == ["halves"]
    assert list(table.model.unique()) == ["net"]


def test_against_selects_one_side_and_every_variant_is_an_arm() -> None:
    rates = {"target": "sgd", "lr": [0.1, 0.2, 0.3]}
    suite = with_pairs({"sgd": rates, "adam": {"target": "adam"}, "lion": {"target": "lion"}}, seeds=2)
    assert counts(suite, {}) == (10, 5), "there are 5 arms"
    assert counts(suite, {"against": ["adam"]}) == (4, 1)
    assert counts(suite, {"against": ["adam", "lion"], "controls": []}) == (7, 0)
    assert counts(suite, {"against": ["sgd"], "controls": ["lion"]}) == (9, 1)


def counts(suite: Suite, pairs: dict[str, Any]) -> tuple[int, int]:
    """Count the pairs and the nulls of a seed."""
    chosen = changed(suite, pairs)
    kinds = [[pair.kind for pair in comparison.pairs] for comparison in comparisons(chosen, trials(chosen))]
    assert len(kinds) == len(suite.seeds)
    assert all(found == kinds[0] for found in kinds)
    return kinds[0].count("pair"), kinds[0].count("null")


def with_pairs(optimizers: dict[str, dict[str, Any]], pairs: dict[str, Any] | None = None, **more: Any) -> Suite:
    return changed(small_suite(optimizers, **more), pairs or {})


def changed(suite: Suite, pairs: dict[str, Any] | None) -> Suite:
    """Return the suite with another `pairs`."""
    content = suite.model_dump()
    content["experiments"]["small"]["pairs"] = pairs
    return complete(Suite.model_validate(content))


# The expected values, in plain torch


class ByHand:
    """All measures of two checkpoints in plain torch."""

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self.path = path
        suite = load_suite(path / "suite.yaml")
        experiment = suite.experiments["halves"]
        family = TaskFamily(experiment.tasks, dataset, experiment.protocol, suite.seed, torch.device("cpu"))
        network = build(experiment.models["net"], family.inputs, family.classes)
        self.start = {seed: initialise(network, generator(suite.seed, seed, "initial weights")) for seed in suite.seeds}
        sequence = family.sequence(0)
        self.test = pooled(sequence, lambda task: sequence.test(task), None)
        self.probe = pooled(sequence, lambda task: spread(sequence.test(task), 1000), None)
        self.train = pooled(sequence, lambda task: sequence.train(task), 1000)

    def weights(self, trial: str) -> dict[str, Tensor]:
        return load_file(self.path / "checkpoints" / f"{trial.replace('/', '__')}.safetensors")

    def measure(self, a: dict[str, Tensor], b: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, float]:
        x, y = (features(w, self.test[0]).double() for w in (a, b))
        words = [linear(features(w, self.test[0]), w["head.weight"], w["head.bias"]).argmax(1) for w in (a, b)]
        grams = [centre @ centre.T for centre in (x - x.mean(0), y - y.mean(0))]
        u, v = (torch.linalg.svd(f, full_matrices=False).Vh[:10].T for f in (x, y))
        line = [mixed(a, b, k / 10) for k in range(11)]
        losses = [self.loss(w) for w in line]
        accuracies = [accuracy(w, self.probe) for w in line]
        one, other = (torch.cat([(w[n].double() - start[n].double()).flatten() for n in start]) for w in (a, b))
        return {
            "linear_cka": hsic(grams[0], grams[1]) / math.sqrt(hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])),
            "linear_cka_debiased": unbiased(x, y) / math.sqrt(unbiased(x, x) * unbiased(y, y)),
            "subspace_overlap": (u.T @ v).square().sum().item() / 10,
            "subspace_overlap_chance": 10 / 24,
            "prediction_disagreement": (words[0] != words[1]).double().mean().item(),
            "loss_barrier": max(losses[k] - (1 - k / 10) * losses[0] - k / 10 * losses[10] for k in range(11)),
            "accuracy_barrier": max(
                (1 - k / 10) * accuracies[0] + k / 10 * accuracies[10] - accuracies[k] for k in range(11)
            ),
            "weight_distance": ((one - other).norm() / ((one.norm() + other.norm()) / 2)).item(),
            "displacement_angle": math.degrees(math.acos((one @ other / one.norm() / other.norm()).item())),
        }

    def loss(self, weights: dict[str, Tensor]) -> float:
        inputs, labels = self.train
        return cross_entropy(
            linear(features(weights, inputs.double()), weights["head.weight"], weights["head.bias"]), labels
        ).item()


def pooled(sequence: TaskSequence, part: Callable[[int], Examples], first: int | None) -> tuple[Tensor, Tensor]:
    parts = [part(task) for task in range(sequence.family.count)]
    inputs = torch.cat([examples.inputs[:first].flatten(1).float() for examples in parts])
    return (inputs / 255 - 0.1307) / 0.3081, torch.cat([examples.targets[:first] for examples in parts])


def spread(examples: Examples, count: int) -> Examples:
    return examples.select(torch.tensor([i * len(examples) // count for i in range(count)]))


def features(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return linear(inputs, weights["layers.0.weight"], weights["layers.0.bias"]).relu()


def mixed(a: dict[str, Tensor], b: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    return {name: (1 - alpha) * a[name].double() + alpha * b[name].double() for name in a}


def accuracy(weights: dict[str, Tensor], probe: tuple[Tensor, Tensor]) -> float:
    single = {name: weight.float() for name, weight in weights.items()}
    logits = linear(features(single, probe[0]), single["head.weight"], single["head.bias"])
    return (logits.argmax(1) == probe[1]).double().mean().item()


def hsic(k: Tensor, m: Tensor) -> float:
    return (k * m).sum().item()


def unbiased(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimator of HSIC (Song et al. 2012, equation 5)."""
    k, m = (f @ f.T for f in (x, y))
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    n = len(k)
    mean = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return (((k * m).sum() + mean) / (n * (n - 3))).item()


def test_every_value_can_be_recomputed_with_plain_torch(path: Path, table: pd.DataFrame, mnist: Dataset) -> None:
    by_hand = ByHand(path, mnist)
    assert len(by_hand.train[1]) == 2000
    assert len(by_hand.test[1]) == 2500
    seen = 0
    for (a, b), rows in table[(table.seed == 0) & table.value.notna()].groupby(["trial_a", "trial_b"]):
        expected = by_hand.measure(by_hand.weights(str(a)), by_hand.weights(str(b)), by_hand.start[0])
        found = dict(zip(rows.metric, rows.value, strict=True))
        assert found.keys() == expected.keys() == set(PAIR_METRICS)
        # Sums over batches of another size may round differently, which can change the prediction of an example.
        counted = {"prediction_disagreement": 1 / 2500, "accuracy_barrier": 2 / 2000}
        for metric, value in expected.items():
            assert found[metric] == pytest.approx(value, rel=1e-5, abs=counted.get(metric, 1e-7) + 1e-12), (
                a,
                b,
                metric,
            )
        seen += 1
    assert seen == 3


def test_a_solution_compared_with_itself_has_distance_zero(mnist: Dataset) -> None:
    suite = with_pairs({"a": {"target": "sgd"}, "b": {"target": "adam"}}, {"controls": []}, seeds=1)
    comparison, workspace = prepared(suite, mnist)
    network = build(suite.experiments["small"].models["net"], workspace.family.inputs, workspace.family.classes)
    start = initialise(network, generator(suite.seed, 0, "initial weights"))
    moved = {name: weight + 0.1 * torch.sin(100 * weight) for name, weight in start.items()}
    found = {row.metric: row for row in compare(comparison, workspace, lambda trial: moved, {})}
    expected = dict.fromkeys(PAIR_METRICS, 0.0)
    expected |= {"linear_cka": 1.0, "linear_cka_debiased": 1.0, "subspace_overlap": 1.0, "subspace_overlap_chance": 0.5}
    assert {name: row.value for name, row in found.items()} == pytest.approx(expected, abs=1e-12)
    found = {row.metric: row for row in compare(comparison, workspace, lambda trial: start, {})}
    for metric, note in (("weight_distance", "neither solution has moved"), ("displacement_angle", "not moved")):
        assert found[metric].value is None
        assert note in str(found[metric].note)


def prepared(suite: Suite, dataset: Dataset) -> tuple[Any, Workspace]:
    workspace = Workspace.of(suite.experiments["small"], dataset, suite.seed, torch.device("cpu"))
    return comparisons(suite, trials(suite))[0], workspace


def test_undefined_measures_are_null_with_a_reason(mnist: Dataset) -> None:
    chosen: dict[str, Any] = {"controls": [], "metrics": ["subspace_overlap", "linear_cka", "subspace_overlap_chance"]}
    model = {"kind": "mlp", "hidden": [4]}
    suite = with_pairs({"a": {"target": "sgd"}, "b": {"target": "adam"}}, chosen, seeds=1, model=model)
    comparison, workspace = prepared(suite, mnist)
    network = build(suite.experiments["small"].models["net"], workspace.family.inputs, workspace.family.classes)
    dead = {name: torch.zeros(parameter.shape) for name, parameter in network.named_parameters()}
    rows = compare(comparison, workspace, lambda trial: dead, {})
    assert [row.metric for row in rows] == chosen["metrics"], "the requested metrics, in their order"
    assert [row.value for row in rows] == [None, None, None]
    assert [str(row.note) for row in rows] == [
        "expected at least 10 features, got 4",
        "the features of a solution do not vary, or are not finite",
        "expected at least 10 features, got 4",
    ]


def test_little_memory_gives_the_same_values_without_reading_a_solution_for_every_pair(mnist: Dataset) -> None:
    names = [f"o{i}" for i in range(7)]
    cheap = {"controls": [], "metrics": ["linear_cka", "weight_distance"]}
    suite = with_pairs({name: {"target": "sgd"} for name in names}, cheap, seeds=1)
    comparison, workspace = prepared(suite, mnist)
    network = build(suite.experiments["small"].models["net"], workspace.family.inputs, workspace.family.classes)
    read: list[str] = []

    def weights(trial: Trial) -> dict[str, Tensor]:
        read.append(trial.optimizer)
        return initialise(network, generator(0, int(trial.optimizer[1]), "made"))

    plenty = compare(comparison, workspace, weights, {})
    assert sorted(read) == names, "every solution is read once"
    size = 400 * 20 * 8 + sum(w.numel() for w in network.parameters()) * 8 + 400 * 8
    for room, most in ((4, 16), (0, 28)):
        read.clear()
        assert compare(comparison, workspace, weights, {}, budget=room * size) == plenty
        assert 7 < len(read) <= most < 2 * len(comparison.pairs)


# Controls


def test_a_control_differs_only_in_the_data_order(path: Path) -> None:
    found = pd.read_parquet(path / "trials.parquet").set_index("trial")
    controls = found[found.stage == "control"]
    assert sorted(controls.index) == [
        f"halves/net/{optimizer}/default/seed={seed}/order=1" for optimizer in ("adam", "sgd") for seed in (0, 1)
    ]
    same = ["optimizer", "variant", "seed", "init_hash", "hyperparameters", "steps", "status"]
    for trial, row in controls.iterrows():
        original = found.loc[str(trial).removesuffix("/order=1")]
        assert original.stage == "eval"
        assert all(row[name] == original[name] for name in same)
        a, b = (load_file(path / str(place)) for place in (row.checkpoint, original.checkpoint))
        assert not any(torch.equal(a[name], b[name]) for name in a)


def test_order_0_is_the_usual_data_order_and_order_1_permutes_the_same_examples() -> None:
    examples = Examples(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), torch.arange(100) % 10)
    first, again, second = (BatchStream(examples, 10, 3, 5, 1, *order) for order in ((), (0,), (1,)))
    for epoch in range(2):
        orders = [
            torch.cat([stream.indices(step) for step in range(10 * epoch, 10 * epoch + 10)])
            for stream in (first, again, second)
        ]
        known = torch.randperm(100, generator=generator(3, 5, f"data order/task 1/epoch {epoch}"))
        assert torch.equal(orders[0], known)
        assert torch.equal(orders[1], known)
        assert not torch.equal(orders[2], known)
        assert torch.equal(orders[2].sort().values, torch.arange(100))


def test_controls_train_in_the_cohorts_of_the_other_trials() -> None:
    suite = with_pairs({"shampoo": {"target": "shampoo"}, "sgd": {"target": "sgd"}}, seeds=3)
    found = cohorts(trials(suite))
    assert [len(cohort.trials) for cohort in found] == [6, 6]
    assert all([trial.is_control for trial in cohort.trials] == [False] * 3 + [True] * 3 for cohort in found)


def test_comparing_pairs_does_not_change_the_other_trials(path: Path, plain: Path) -> None:
    for name in TABLES:
        a, b = (pd.read_parquet(place / f"{name}.parquet") for place in (path, plain))
        a = a[a.stage != "control"].reset_index(drop=True)
        pd.testing.assert_frame_equal(*(t.drop(columns=CLOCK, errors="ignore") for t in (a, b)), check_exact=True)
    assert not (plain / "pairs.parquet").exists()


def test_controls_do_not_change_the_numbers_of_reports_and_comparisons(
    path: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (json.loads(report(place, "json", capsys)) for place in (path, plain))
    timeless = [[r for r in found["results"] if METRICS[r["metric"]].kind != "cost"] for found in (a, b)]
    assert len(timeless[0]) > 20
    assert [{**r, "run": ""} for r in timeless[0]] == [{**r, "run": ""} for r in timeless[1]]
    assert [m["accuracy"] for m in a["matrices"]] == [m["accuracy"] for m in b["matrices"]]
    assert [(f["runs"][0]["planned"], f["runs"][0]["statuses"], f["runs"][0]["controls"]) for f in (a, b)] == [
        (6, {"ok": 4, "diverged": 2}, 4),
        (6, {"ok": 4, "diverged": 2}, 0),
    ]
    assert "One solution against another" not in report(plain, "markdown", capsys)
    compared = []
    for place in (path, plain):
        assert main(["compare", f"{place}:sgd", f"{place}:adam", "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)["results"]
        compared.append([{**r, "run_a": "", "run_b": ""} for r in found if METRICS[r["metric"]].kind != "cost"])
    assert compared[0] == compared[1]
    assert all(r["planned"] == 2 for r in compared[0])


# Missing solutions and interrupted runs


def test_a_diverged_partner_gives_nulls_with_a_note(path: Path, table: pd.DataFrame) -> None:
    wild = table[(table.optimizer_a == "wild") | (table.optimizer_b == "wild")]
    assert wild.value.isna().all()
    assert set(wild.note) == {f"halves/net/wild/default/seed={seed}: diverged" for seed in (0, 1)}
    assert table[~table.index.isin(wild.index)].value.notna().all()


class Watching(Silent):
    """A view that keeps the messages, and a copy of the run directory at the first of them."""

    def __init__(self, copy: Path | None = None) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.copy = copy
        self.path: Path | None = None

    def started(self, plan: object, path: Path, device: str, jobs: int) -> None:
        self.path = path

    def warning(self, text: str) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)
        if self.copy is not None and self.path is not None and not self.copy.exists():
            shutil.copytree(self.path, self.copy)


def go_on(folder: Path) -> Watching:
    view = Watching()
    run(load_suite(folder / "suite.yaml"), Options(device="cpu", resume=folder, jobs=1), view)
    return view


def test_a_run_killed_between_comparisons_resumes_to_the_same_table(
    path: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    view = Watching(killed)
    outcome = run(load_suite(path / "suite.yaml"), Options(device="cpu", runs_dir=tmp_path, name="whole", jobs=1), view)
    assert len(view.messages) == 2
    pd.testing.assert_frame_equal(pd.read_parquet(outcome.path / "pairs.parquet"), table, check_exact=True)
    known = read_run(killed).pairs
    assert set(known["seed"].to_pylist()) == {0}, "the first comparison was durable when the process died"
    resumed = go_on(killed)
    assert resumed.trained == []
    assert resumed.messages == ["halves net seed 1: 3 pairs and 2 nulls compared"]
    pd.testing.assert_frame_equal(pd.read_parquet(killed / "pairs.parquet"), table, check_exact=True)
    assert go_on(killed).messages == [], "nothing is compared twice"


def test_a_missing_table_of_pairs_is_recomputed_except_where_weights_are_gone(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / "pairs.parquet").unlink()
    assert read_run(copy).pairs.num_rows == 0
    assert [pair.measures for pair in solution_pairs(read_results(read_run(copy)))] == [{}] * 3
    (copy / "checkpoints" / "halves__net__adam__default__seed=1.safetensors").unlink()
    assert len(go_on(copy).messages) == 2
    found = pd.read_parquet(copy / "pairs.parquet")
    gone = found[found.note == "halves/net/adam/default/seed=1: its final weights are gone"]
    assert len(gone) == 3 * len(PAIR_METRICS)
    assert gone.value.isna().all()


def test_a_failed_comparison_leaves_nulls_and_is_retried(path: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / "pairs.parquet").unlink()
    damaged = copy / "checkpoints" / "halves__net__adam__default__seed=1.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:50])
    assert len(go_on(copy).messages) == 2
    found = pd.read_parquet(copy / "pairs.parquet")
    assert found.groupby("seed").note.apply(lambda notes: notes.str.startswith(NOT_COMPARED).all()).to_dict() == {
        0: False,
        1: True,
    }
    assert found[found.seed == 1].value.isna().all()
    damaged.write_bytes(whole)
    assert go_on(copy).messages == ["halves net seed 1: 3 pairs and 2 nulls compared"]
    pd.testing.assert_frame_equal(pd.read_parquet(copy / "pairs.parquet"), table, check_exact=True)


def test_pairs_of_a_trial_are_dropped_when_it_is_trained_again(tmp_path: Path) -> None:
    suite = with_pairs({"sgd": {"target": "sgd"}, "adam": {"target": "adam"}}, seeds=2)
    planned = trials(suite)
    writer = RunWriter.create(tmp_path / "run", dump_suite(suite), {}, planned)
    for cohort in cohorts(planned):
        writer.add(cohort, [(trial, row) for trial in cohort.trials for row in rows_of()])
    both = comparisons(suite, planned)
    for i, comparison in enumerate(both):
        note = None if i else f"{NOT_COMPARED}: OSError: no memory"
        value = 0.5 if i else None
        writer.add_pairs(comparison, [PairRow.of(p, "linear_cka", value, note) for p in comparison.pairs])
    writer.finish("complete")
    everything = read_run(tmp_path / "run").pairs
    assert everything.num_rows == 6
    assert settled_pairs(everything) == {(p.a.id, p.b.id) for p in both[1].pairs}, "failed comparisons are tried again"
    assert [comparison.seed for comparison in make_plan(suite, tmp_path / "run").comparisons] == [0]
    writer = RunWriter.resume(tmp_path / "run", {}, (), planned, [], {})
    control = next(t for t in planned if t.is_control and t.seed == 1 and t.optimizer == "sgd")
    again = next(c for c in cohorts([control]))
    writer.add(again, [(control, row) for row in rows_of()])
    left = read_run(tmp_path / "run").pairs
    names = set(left["trial_a"].to_pylist()) | set(left["trial_b"].to_pylist())
    assert control.id not in names
    assert left.num_rows == 5
    writer.add_pairs(both[1], [PairRow.of(p, "linear_cka", 0.25, None) for p in both[1].pairs])
    for _ in range(2):  # before and after merging
        found = read_run(tmp_path / "run").pairs.to_pandas()
        assert found[found.seed == 1].value.tolist() == [0.25] * 3
        assert len(found) == 6
        writer.finish("complete")


# Reports


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_shows_pairs_next_to_their_nulls(
    path: Path, table: pd.DataFrame, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = report(path, form, capsys)
    picked = table[(table.metric == "weight_distance") & (table.optimizer_b != "wild")]
    values = {(a, b): rows.value for (a, b), rows in picked.groupby(["optimizer_a", "optimizer_b"])}
    nulls = np.concatenate([values["sgd", "sgd"], values["adam", "adam"]])
    outside = sum(not nulls.min() <= value <= nulls.max() for value in values["sgd", "adam"])
    if form in ("csv", "json"):
        records: list[dict[str, Any]] = (
            json.loads(text)["pairs"] if form == "json" else list(csv.DictReader(io.StringIO(text)))
        )
        for (a, b), expected in values.items():
            key = ("null" if a == b else "pair", a, b, "weight_distance")
            names = ("pair_kind", "optimizer", "optimizer_b", "metric")
            found = [r for r in records if tuple(r[name] for name in names) == key]
            assert len(found) == 1
            assert [float(found[0][k]) for k in ("mean", "sd", "n", "planned")] == pytest.approx(
                [expected.mean(), expected.std(), 2, 2]
            )
            assert found[0]["outside"] in ((None, "") if a == b else (outside, str(outside)))
        return
    assert "One solution against another" in text
    assert "6 trials and 4 controls" in text
    numbers = [f"{values[k].mean():.3f}" for k in (("sgd", "adam"), ("sgd", "sgd"), ("adam", "adam"))]
    if form == "html":
        assert all(f">{number}±" in text for number in numbers)
        assert f">{outside} of 2<" in text
    elif form == "latex":
        assert any(all(number in line for number in numbers) for line in text.splitlines())
    else:
        lines = [line for line in text.splitlines() if all(number in line for number in numbers)]
        assert len(lines) == 1
        assert f"{outside} of 2" in lines[0]
    assert "no defined values for sgd, wild; adam, wild" in text
    assert "undefined: halves/net/wild/default/seed=0: diverged" in text.replace(r"\_", "_")
    assert "another order" in " ".join(text.split())


def test_outside_counts_seeds_beyond_the_range_of_nulls() -> None:
    values = {0: 0.1, 1: 0.5, 2: 0.9, 3: math.nan}
    assert Measured(values, {0: 0.2, 1: 0.4}, {0: 0.6}).outside == (2, 3)
    assert Measured(values, {0: 0.2}, None).null_range == (0.2, 0.2)
    assert Measured(values, None, None).outside is None
    assert Measured({0: math.nan}, {0: 0.2}, None).outside is None


def test_a_terminal_shows_few_pairs_and_counts_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = {"kind": "permuted", "count": 3}  # matches the rows that are written
    optimizers = {f"o{i}": {"target": "sgd"} for i in range(7)}
    suite = with_pairs(optimizers, {"controls": [], "metrics": ["linear_cka"]}, tasks=three)
    planned = trials(suite)
    writer = RunWriter.create(tmp_path / "run", dump_suite(suite), {"suite": "test"}, planned)
    for cohort in cohorts(planned):
        writer.add(cohort, [(trial, row) for trial in cohort.trials for row in rows_of()])
    for comparison in comparisons(suite, planned):
        writer.add_pairs(comparison, [PairRow.of(p, "linear_cka", 0.5, None) for p in comparison.pairs])
    writer.finish("complete")
    text = report(tmp_path / "run", "terminal", capsys)
    assert text.count("CKA ") >= 12
    assert "and 9 more pairs, included in csv and json" in text
    assert len(json.loads(report(tmp_path / "run", "json", capsys))["pairs"]) == 21


# Suites


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("{against: [sdg]}", "pairs.against: unknown optimizer in halves 'sdg'; did you mean 'sgd'?"),
        ("{controls: [adm]}", "pairs.controls: unknown optimizer in halves 'adm'; did you mean 'adam'?"),
        ("{metrics: [linear_ckaa]}", "unknown metric of pairs 'linear_ckaa'; did you mean 'linear_cka'?"),
        ("{metrics: [forgetting]}", "unknown metric of pairs 'forgetting'"),
        ("{against: []}", "expected at least 1 entry, got 0"),
        ("{against: [sgd, sgd]}", "the optimizer 'sgd' is listed twice"),
        ("{metrics: [linear_cka, linear_cka]}", "the metric 'linear_cka' is listed twice"),
        ("{with: [sgd]}", "unknown key 'with'"),
        ("true", "experiments.halves.pairs: expected a mapping, or null, got true"),
        ("{}\n    checkpoints: false", "'pairs' needs 'checkpoints: true'"),
        ("{}\n    primary: [loss_barrier]", "'loss_barrier' compares two solutions"),
    ],
)
def test_an_error_in_pairs_is_reported_in_one_line(
    pairs: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(f"{PLAIN}    pairs: {pairs}\n", encoding="utf-8")
    assert main(["run", str(file), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"{file}:" in said
    assert message in said


def test_a_dry_run_counts_what_will_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE, encoding="utf-8")
    assert main(["run", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "6 trials and 4 controls in 2 cohorts" in said, "the two rates of sgd are trained together"
    assert "6 pairs of solutions, and 4 solutions with their controls" in said
    assert "to do halves/net/sgd/default/seed=0-1/order=1\n" in said
    # Optimizers that are left out are not compared.
    assert main(["run", str(file), "--dry-run", "--optimizer", "adam"]) == 0
    said = capsys.readouterr().out
    assert "2 trials and 2 controls" in said
    assert "0 pairs of solutions, and 2 solutions with their controls" in said
    file.write_text(SUITE.replace("{controls:", "{against: [sgd], controls:"), encoding="utf-8")
    assert main(["run", str(file), "--dry-run", "--optimizer", "adam"]) == 0
    assert "control" not in capsys.readouterr().out


def test_suites_without_pairs_keep_their_hash() -> None:
    suite = small_suite({"sgd": {"target": "sgd"}})
    content = suite.model_dump(mode="json", exclude={"description", "claims", "tune"})
    for experiment in content["experiments"].values():
        for key in ("primary", "tuning", "pairs", "twins", "transfer", "figures"):
            del experiment[key]
        for model in experiment["models"].values():
            del model["initialisation"]
        for key in ("score", "follow_earlier", "schedule", "clip_norm", "weight_averaging", "augment", "precision"):
            del experiment["protocol"][key]
        del experiment["tasks"]["examples_per_task"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert suite_hash(suite) == hashlib.sha256(text.encode()).hexdigest()[:16]
    hashes = [suite_hash(changed(suite, pairs)) for pairs in (None, {}, {"controls": []})]
    assert hashes[0] == suite_hash(suite)
    assert len(set(hashes)) == 3


def test_metrics_of_pairs_are_neutral_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "metrics"]) == 0
    words = capsys.readouterr().out.split()
    for name in PAIR_METRICS:
        assert METRICS[name].direction == "neutral"
        assert name in words
