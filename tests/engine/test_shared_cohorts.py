"""Cohorts that span several optimizers of a suite, and trials that share one training, do not change results."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from optbench.cli import main
from optbench.cli.live import LineView, cohort_line
from optbench.cli.progress import Tracker
from optbench.data import Dataset, InputSpec
from optbench.engine import Progress, Workspace, train
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser, sharing
from optbench.engine.gradients import Bound
from optbench.engine.gradients.loop import LoopGradients
from optbench.engine.gradients.mlp import MlpGradients
from optbench.engine.gradients.together import TogetherGradients
from optbench.engine.gradients.vmap import Vmap
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.execution.schedule import MOST_ON_CPU, make_plan, spread
from optbench.models import build, initialise
from optbench.plan import Cohort, Trial, cohorts, complete, expected_cost, trainings, trials
from optbench.store import RunWriter, read_run
from optbench.store.read import only
from optbench.store.tables import ALL_TABLES, ON_REQUEST, SketchRow
from optbench.streams import generator
from optbench.suite import Suite, dump_suite, load_suite, suite_hash
from optbench.tasks import Examples
from tests.conftest import CLOCK, PoolHere, small_suite

SGD: dict[str, Any] = {"target": "sgd", "lr": 0.1}
SUITE = """
name: shared
seeds: 2
optimizers:
  sgd: {target: sgd, lr: 0.1}
  heavy: {target: sgd, lr: [0.1, 0.5], momentum: [0.0, 0.9]}   # lr 0.1 and no momentum: it is `sgd` once more
  adam: {target: adam, lr: 0.001}
  shampoo: {target: shampoo, precondition_frequency: 5, lr: 0.03}
  shampoos: {target: shampoo, precondition_frequency: 5, lr: [0.03, 0.1]}
  soft: {target: l1, strength: 1.0e-4, base: {target: sgd, lr: 0.1}}
  softer: {target: l1, strength: [1.0e-4, 1.0e-3], base: {target: sgd, lr: 0.1}}
experiments:
  small:
    dataset: {kind: mnist, resize: 7}
    tasks: {kind: permuted, count: 2}
    models: {net: {kind: mlp, hidden: [12]}}
    protocol:
      {batch_size: 32, max_steps: 12, evaluate_every: 0.2, early_stopping: {patience: 1}, train_examples: 800,
       validation_examples: 200, test_examples: 100}
    twins: [[sgd, adam]]
"""
CHECKPOINT = ["checkpoint"]


def planned(optimizers: dict[str, dict[str, Any]], seeds: list[int] | int = 2) -> list[Trial]:
    return trials(small_suite(optimizers, seeds=seeds))


def names(optimizers: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    return [cohort.optimizers for cohort in cohorts(planned(optimizers))]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("together"), [])


def ran(folder: Path, words: list[str]) -> Path:
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")
    command = ["run", str(folder / "suite.yaml"), "--runs-dir", str(folder), "--name", "run", "--device", "cpu"]
    assert main([*command, "--quiet", "--jobs", "2", *words]) == 0
    return folder / "run"


def table(run: Path, name: str, *dropped: str) -> pd.DataFrame:
    return read_run(run).table(name).to_pandas().drop(columns=[*CLOCK, *dropped], errors="ignore")


def test_elementwise_optimizers_with_any_settings_share_a_cohort() -> None:
    assert names({"sgd": SGD, "adam": {"target": "adam"}, "heavy": {**SGD, "momentum": 0.9}}) == [
        ("sgd", "heavy"),
        ("adam",),
    ]


def test_batched_optimizers_share_a_cohort_if_their_cohort_wide_settings_are_equal() -> None:
    rare = {"target": "shampoo", "precondition_frequency": 50}
    often = {"target": "shampoo", "precondition_frequency": 5}
    assert names({"a": rare, "b": often, "c": {**rare, "lr": 0.5}}) == [("a", "c"), ("b",)]


def test_members_with_and_without_momentum_are_in_separate_cohorts() -> None:
    plain, heavy = {"target": "shampoo", "momentum": 0.0}, {"target": "shampoo", "momentum": 0.9}
    assert names({"a": plain, "b": heavy, "c": {**plain, "lr": 0.5}, "d": {**heavy, "momentum": 0.5}}) == [
        ("a", "c"),
        ("b", "d"),
    ]


def test_wrappers_share_a_cohort_if_all_nested_bases_are_the_same() -> None:
    adam = {"target": "adam"}
    inner = {"target": "l1", "base": SGD}
    there, back = ({"target": "switch", "first": a, "then": b} for a, b in ((SGD, adam), (adam, SGD)))
    assert names({"there": there, "back": back, "later": {**there, "at": 7}}) == [("there", "later"), ("back",)]
    assert names(
        {
            "a": {"target": "sam", "base": inner},
            "b": {"target": "sam", "base": {**inner, "base": adam}},
            "c": {"target": "sam", "base": {**inner, "strength": 1.0}},
        }
    ) == [("a", "c"), ("b",)]


def test_users_optimizers_share_a_cohort_if_their_declarations_are_equal() -> None:
    mine = {"target": "torch.optim:SGD", "lr": 0.1}
    assert names({"a": mine, "b": {**mine, "lr": 0.2}, "c": {**mine, "elementwise": True}}) == [("a", "b"), ("c",)]


def test_trials_share_a_training_only_if_they_differ_in_name_alone() -> None:
    found = planned({"sgd": SGD, "again": SGD, "rates": {**SGD, "lr": [0.1, 0.2]}, "adam": {"target": "adam"}})
    groups = [{(t.optimizer, t.variant) for t in equal} for equal in trainings(found)]
    assert groups == [
        *[{("sgd", "default"), ("again", "default"), ("rates", "lr=0.1")}] * 2,
        *[{("rates", "lr=0.2")}] * 2,
        *[{("adam", "default")}] * 2,
    ]
    first = found[0]
    changes = [
        {"experiment": "other"},
        {"model": "other"},
        {"seed": 9},
        {"order": 1},
        {"target": "adam"},
        {"hyperparameters": {**first.hyperparameters, "lr": 0.10000001}},
        {"hyperparameters": {**first.hyperparameters, "nesterov": 0}},
    ]
    for change in changes:
        assert len(trainings([first, dataclasses.replace(first, **change)])) == 2, change
    renamed = dataclasses.replace(first, id="x", optimizer="x", variant="x", stage="tune")
    assert trainings([first, renamed]) == ((first, renamed),)


def trial(number: int, seed: int, rate: int) -> Trial:
    return Trial(str(number), "e", "m", f"o{number % 3}", "default", seed, "eval", "sgd", {"lr": rate})


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=24),
    st.integers(1, 6),
)
def test_splitting_keeps_trainings_whole_and_balances_the_pieces(found: list[tuple[int, int]], parts: int) -> None:
    cohort = Cohort("e", "m", "o", tuple(trial(i, seed, rate) for i, (seed, rate) in enumerate(found)))
    pieces = cohort.split(parts)
    assert sorted(t.id for piece in pieces for t in piece.trials) == sorted(t.id for t in cohort.trials)
    for piece in pieces:
        assert [int(t.id) for t in piece.trials] == sorted(int(t.id) for t in piece.trials)
    sizes = [len(piece.trainings) for piece in pieces]
    assert sum(sizes) == len(cohort.trainings), "no training is in two pieces"
    assert len(pieces) == min(parts, len(cohort.trainings))
    assert max(sizes) - min(sizes) <= 1
    # Trials of a seed share batches, so a seed is divided only where a piece is full.
    shared = sum(len({t.seed for t in piece.trials}) for piece in pieces)
    assert shared <= len({t.seed for t in cohort.trials}) + len(pieces) - 1


def test_the_longest_pieces_come_first_and_keep_both_processes_busy() -> None:
    plan = make_plan(small_suite({"sgd": SGD, "rates": {**SGD, "lr": [0.1, 0.2]}, "slow": {"target": "shampoo"}}))
    units = spread(plan, 2, MOST_ON_CPU)
    assert [unit.optimizers for unit in units[:2]] == [("slow",)] * 2
    assert [sorted(len(unit.trainings) for unit in pair) for pair in (units[:2], units[2:])] == [[1, 2], [3, 3]]
    assert {t.id for unit in units for t in unit.trials} == {t.id for t in plan.trials}


def test_every_optimizer_has_the_same_bits_as_alone(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optbench.execution.session.Pool", PoolHere)  # saves starting two processes six times
    # sgd and adam run together because sketches need twins; as different optimizers they share no cohort.
    for chosen in (["sgd", "adam"], ["heavy"], ["shampoo"], ["shampoos"], ["soft"], ["softer"]):
        folder = tmp_path / chosen[0]
        folder.mkdir()
        alone = ran(folder, [word for name in chosen for word in ("--optimizer", name)])
        for name in ALL_TABLES:
            a, b = table(together, name), table(alone, name)
            a = a[a.optimizer.isin(chosen)].reset_index(drop=True)
            pd.testing.assert_frame_equal(a, b, check_exact=True)
        for place in table(alone, "trials").checkpoint:
            ours, theirs = (load_file(run / place) for run in (together, alone))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_every_trial_of_a_shared_training_has_rows_a_checkpoint_and_a_status(together: Path) -> None:
    suite = complete(load_suite(together / "suite.yaml"))
    same = [equal for equal in trainings(trials(suite)) if len(equal) > 1]
    assert Counter(tuple(t.optimizer for t in equal) for equal in same) == {
        ("sgd", "heavy"): 2,
        ("shampoo", "shampoos"): 2,
        ("soft", "softer"): 2,
    }
    keys = ["trial", "optimizer", "variant"]
    for a, b in same:
        for name in ALL_TABLES:
            rows = read_run(together).table(name).to_pandas()
            mine, its = (rows[rows.trial == t.id].reset_index(drop=True) for t in (a, b))
            if name == SketchRow.table:  # `twins` covers only some optimizers
                assert (len(mine) > 0, len(its) > 0) == (a.optimizer == "sgd", False)
                continue
            assert len(mine) > 0 or name == "pruning" or name in ON_REQUEST
            # The seconds are equal too, as there was only one training.
            pd.testing.assert_frame_equal(
                mine.drop(columns=[*keys, *CHECKPOINT], errors="ignore"),
                its.drop(columns=[*keys, *CHECKPOINT], errors="ignore"),
                check_exact=True,
            )
        places = dict(zip(*(table(together, "trials")[c] for c in ("trial", "checkpoint")), strict=True))
        assert places[a.id] != places[b.id]
        assert (together / places[a.id]).is_file()
        assert (together / places[b.id]).is_file()


def test_a_finished_trial_is_copied_to_the_others_that_share_its_training(together: Path, tmp_path: Path) -> None:
    suite = complete(load_suite(together / "suite.yaml"))
    everything = trials(suite)
    first = {equal[0].id for equal in trainings(everything) if len(equal) > 1}
    writer = RunWriter.create(
        tmp_path / "part",
        dump_suite(suite),
        {"run": "part", "suite": suite.name, "suite_hash": suite_hash(suite), "seeds": suite.seeds},
        everything,
    )
    writer.finish("interrupted")
    kept = read_run(together)
    # as left by an older version, which trained every trial separately
    writer._gathered.add({name: only(kept.table(name), pa.array(sorted(first))) for name in ALL_TABLES})
    writer.finish("interrupted")
    left = make_plan(suite, tmp_path / "part")
    assert left.done == first
    to_train = {t.id for unit in spread(left, 2) for t in unit.trials}
    assert to_train == {t.id for t in everything} - first
    assert main(["run", "--resume", str(tmp_path / "part"), "--jobs", "2", "--device", "cpu", "--quiet"]) == 0
    for name in ALL_TABLES:
        pd.testing.assert_frame_equal(table(tmp_path / "part", name), table(together, name), check_exact=True)


def small(optimizers: dict[str, dict[str, Any]], mnist: Dataset, **protocol: Any) -> tuple[Suite, Workspace]:
    suite = small_suite(optimizers, seeds=2, **protocol)
    return suite, Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))


def test_a_shared_training_runs_once_and_is_reported_for_all_its_trials(
    mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, workspace = small({"sgd": SGD, "again": SGD, "third": {**SGD, "lr": [0.1, 0.3]}}, mnist, max_steps=5)
    updated: list[int] = []
    step = torch.optim.SGD.step

    def counted(self: Any, closure: Any = None) -> Any:
        updated.append(sum(len(p) for group in self.param_groups for p in group["params"]))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    told: list[Progress] = []
    (cohort,) = cohorts(trials(suite))
    results = train(cohort, workspace, told.append)
    assert sum(updated) == 2 * 5 * 4, "two tasks of five steps, two rates and two seeds"
    assert [result.trial for result in results] == list(cohort.trials)
    ends = [news.trial for news in told if news.status == "done"]
    assert sorted(ends) == sorted(t.id for t in cohort.trials)
    news = Counter(item.trial for item in told)
    for equal in cohort.trainings:
        assert len({news[t.id] for t in equal}) == 1


def test_progress_counts_a_shared_training_once() -> None:
    plan = make_plan(small_suite({"sgd": SGD, "again": SGD, "fast": {**SGD, "lr": 0.3}}, seeds=1))
    tracker = Tracker(plan, lambda: 0.0)
    sgd, again, fast = plan.trials
    tracker.progress(Progress(sgd.id, 1, 1.0, 0.5, "done"))
    tracker.progress(Progress(again.id, 1, 1.0, 0.5, "done"))
    assert tracker.fraction == pytest.approx(0.5), "one of two trainings"
    tracker.progress(Progress(fast.id, 1, 1.0, 0.5, "done"))
    assert tracker.fraction == pytest.approx(1.0)
    experiment, tasks = plan.suite.experiments["small"], plan.outlines["small"]
    whole = dataclasses.replace(plan, done=frozenset({sgd.id}))
    assert sum(Tracker(whole, lambda: 0.0)._cost.values()) == pytest.approx(2 * expected_cost(fast, experiment, tasks))


def test_a_log_line_names_all_optimizers_of_a_cohort(together: Path, tmp_path: Path) -> None:
    suite = complete(load_suite(together / "suite.yaml"))
    plan = make_plan(suite)
    with (tmp_path / "log").open("w") as stream:
        view = LineView(stream)
        view.started(plan, together, "cpu", 1)
        rows = [(t, _ok()) for t in plan.cohorts[0].trials]
        view.finished(rows)
        assert view.tracker is not None
        assert cohort_line(rows, view.tracker).startswith("small net sgd, heavy: 10 trials done, 10/24")


def _ok() -> Any:
    from optbench.store.tables import TrialRow

    return TrialRow("ok", None, None, 1, 1, 1, "cpu", "{}", "0", 1.0, 0.5, 0, None, 0, None)


def test_a_dry_run_names_the_optimizers_of_a_cohort_and_counts_shared_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    assert main(["run", str(tmp_path / "suite.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "shared: 24 trials in 4 cohorts" in shown
    assert "6 of them differ from other trials only in name and are not trained again" in shown
    assert "sgd, heavy" in shown
    assert "adam-" not in shown
    assert main(["run", str(tmp_path / "suite.yaml"), "--dry-run", "--optimizer", "adam"]) == 0
    assert "in name only" not in capsys.readouterr().out


@settings(max_examples=25, deadline=None)
@given(
    places=st.lists(st.integers(0, 2), min_size=1, max_size=8),
    hidden=st.sampled_from([[7], [100], [33, 16], [200, 100], []]),
    activation=st.sampled_from(["relu", "tanh"]),
    batch=st.sampled_from([1, 5, 32, 60, 256]),
)
def test_gradients_of_members_that_share_batches_have_the_same_bits_as_alone(
    mnist: Dataset, places: list[int], hidden: list[int], activation: str, batch: int
) -> None:
    """places: which of three batch streams each member has."""
    suite = small_suite({"sgd": SGD}, model={"kind": "mlp", "hidden": hidden or [3], "activation": activation})
    experiment = suite.experiments["small"]
    network = build(experiment.models["net"], InputSpec((1, 28, 28)), 10)
    layout = Layout.of({name: p.shape for name, p in network.named_parameters()})
    buffer = BatchBuffer(batch, Normaliser.of(mnist, experiment.protocol, torch.device("cpu")))
    examples = Examples(mnist.train.inputs[:600], mnist.train.targets[:600])
    streams = [BatchStream(examples, batch, 0, seed, 0) for seed in range(3)]
    weights = torch.stack([layout.pack(initialise(network, generator(0, i, "w"))) for i in range(len(places))])
    chosen = [streams[place] for place in places]
    for way in (MlpGradients, LoopGradients):
        grads, losses = torch.zeros_like(weights), torch.zeros(len(places))
        gradients = way(network, layout, buffer, Bound(weights, grads, chosen))
        for step in range(2):
            gradients(step, losses)
        for i, stream in enumerate(chosen):
            own, loss = torch.zeros_like(weights[:1]), torch.zeros(1)
            way(network, layout, buffer, Bound(weights[i : i + 1].clone(), own, [stream]))(1, loss)
            assert torch.equal(own[0], grads[i])
            assert torch.equal(loss[0], losses[i])
    if batch > 1:
        found, values = torch.zeros_like(weights), torch.zeros(len(places))
        bound = Bound(weights, found, chosen)
        TogetherGradients(Vmap(network, layout, bound), bound, buffer.normalise, Recordings(None))(1, values)
        torch.testing.assert_close(found, grads, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(values, losses, rtol=1e-4, atol=1e-5)


def test_members_are_grouped_by_stream_in_order_of_appearance(mnist: Dataset) -> None:
    examples = Examples(mnist.train.inputs[:64], mnist.train.targets[:64])
    a, b = (BatchStream(examples, 32, 0, seed, 0) for seed in range(2))
    assert sharing([a, b, a, a, b]) == [(0, 2, 3), (1, 4)]
    assert sharing([]) == []


@pytest.mark.parametrize(
    ("jobs", "most", "sizes"), [(2, None, [15, 15]), (2, 8, [7, 8, 7, 8]), (3, 4, [3] * 6 + [4] * 3)]
)
def test_a_large_cohort_is_split_into_pieces_for_all_processes(jobs: int, most: int | None, sizes: list[int]) -> None:
    plan = make_plan(small_suite({"sgd": {**SGD, "lr": [0.1, 0.2, 0.3]}}, seeds=10))
    units = spread(plan, jobs, most)
    assert sorted(len(unit.trials) for unit in units) == sorted(sizes)
    assert sorted(trial.id for unit in units for trial in unit.trials) == sorted(trial.id for trial in plan.trials)


@pytest.mark.parametrize(("devices", "pieces"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_accelerators_get_whole_cohorts_longest_first(devices: int, pieces: int) -> None:
    """Cohorts are as large as one stack can hold, and split only if devices would be idle."""
    optimizers = {"sgd": SGD, "shampoo": {"target": "shampoo"}, "adam": {"target": "adam"}}
    plan = make_plan(small_suite(optimizers, seeds=12))
    units = spread(plan, devices)
    assert [unit.trials[0].optimizer for unit in units[:pieces]] == ["shampoo"] * pieces
    assert [len(unit.trials) for unit in units] == [12 // pieces] * 3 * pieces
