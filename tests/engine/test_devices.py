"""Results on another device agree with the CPU. Each test also runs on the CPU, with one optimizer of each lane.

`pytest -m cuda` runs the tests that need a CUDA device; without one they are skipped. Tests marked `first(rank)` are
those that `benchmarks/on_device.py` runs on a device in 90 s, lowest rank first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import TrialResult, Workspace, train
from optbench.engine.batches import BatchBuffer, BatchStream, Normaliser
from optbench.engine.blueprint import Blueprint
from optbench.engine.device import worker_devices
from optbench.engine.execution import Execution
from optbench.engine.gradients import Ways
from optbench.engine.interim import Interim
from optbench.engine.lanes import LaneMember
from optbench.engine.lockstep import LockStep, Machinery
from optbench.engine.rates import RateCurve
from optbench.engine.recording import Recordings, record_cuda
from optbench.engine.stack import Layout
from optbench.models import build, initialise
from optbench.optimizers.make import resolve_spec
from optbench.optimizers.registry import OPTIMIZERS, complete, find
from optbench.plan import cohorts, trials
from optbench.store.tables import AccuracyRow
from optbench.streams import generator
from optbench.suite import Suite, load_suite, shipped_suites
from optbench.suite.protocol import Protocol
from optbench.suite.schema import ModelSettings, TaskSettings
from optbench.tasks import TaskFamily
from tests.conftest import NEEDS_DATA, PoolHere, assert_same_tables, same_bits, small_suite, tables, timeless, trial_row
from tests.engine.test_interim import BASES, stored

CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
ONE_OF_EACH_LANE = ("adamw", "power-sgd", "sam")
ON_BOTH = [pytest.param("cpu"), pytest.param("cuda", marks=CUDA)]
TYPICAL = (*ONE_OF_EACH_LANE, "shampoo")
SMALL = {"train_examples": 200, "test_examples": 200, "validation_examples": 50, "max_epochs": 1}
TOLERANCE = 0.03
"""Tolerance of accuracies on 200 test examples: six may differ from the CPU, since sums are taken in another order."""


def on_both(rank: Callable[[str], int | None]) -> list[Any]:
    """Return one optimizer of each lane on the CPU and all on CUDA, marked `first` if `rank` gives a rank."""

    def first(name: str) -> list[pytest.MarkDecorator]:
        found = rank(name)
        return [] if found is None else [pytest.mark.first(found)]

    return [
        *(pytest.param("cpu", name, marks=first(name)) for name in ONE_OF_EACH_LANE),
        *(pytest.param("cuda", name, marks=[*CUDA, *first(name)]) for name in OPTIMIZERS),
    ]


def suite_of(name: str, **settings: Any) -> Suite:
    if OPTIMIZERS[name].source == "pytorch-optimizer":
        pytest.importorskip("pytorch_optimizer")
    return small_suite({"it": {"target": name, **BASES.get(name, {}), **settings}}, seeds=2, **SMALL)


def trained(suite: Suite, mnist: Dataset, device: str, **more: Any) -> list[TrialResult]:
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device(device))
    return [
        result
        for cohort in cohorts(trials(suite))
        for result in train(cohort, workspace, lambda progress: None, **more)
    ]


def accuracies(result: TrialResult) -> list[float]:
    return [row.accuracy for row in result.rows if isinstance(row, AccuracyRow) and row.accuracy is not None]


@pytest.mark.parametrize(("device", "name"), on_both(lambda name: 2 if name in TYPICAL else 5))
def test_an_optimizer_agrees_with_the_cpu_and_is_reproducible(device: str, name: str, mnist: Dataset) -> None:
    """Initial weights are bit-identical, accuracies are similar, and training twice on a device gives equal bits."""
    suite = suite_of(name)
    here, there, again = (trained(suite, mnist, where) for where in ("cpu", device, device))
    for a, b, c in zip(here, there, again, strict=True):
        assert trial_row(a).init_hash == trial_row(b).init_hash
        assert trial_row(b).status == "ok"
        assert accuracies(b) == pytest.approx(accuracies(a), abs=TOLERANCE)
        assert same_bits(b, c)


@pytest.mark.parametrize(("device", "name"), on_both(lambda name: 1 if name in TYPICAL else None))
def test_a_member_alone_equals_the_member_among_others(device: str, name: str, mnist: Dataset) -> None:
    """Bit-identical on a CPU; on CUDA the number of members may change the order in which products are summed."""
    suite = suite_of(name)
    among = trained(suite.model_copy(update={"seeds": [0, 1, 2, 3]}), mnist, device)[2]
    [alone] = trained(suite.model_copy(update={"seeds": [2]}), mnist, device)
    assert trial_row(alone).init_hash == trial_row(among).init_hash
    assert accuracies(alone) == pytest.approx(accuracies(among), abs=TOLERANCE)
    if device == "cpu":
        assert same_bits(alone, among)


@pytest.mark.first(1)
@pytest.mark.parametrize("device", ON_BOTH)
def test_the_data_order_is_the_same_on_every_device(device: str, mnist: Dataset) -> None:
    protocol = Protocol(batch_size=32)
    orders = []
    for where in ("cpu", device):
        family = TaskFamily(TaskSettings.of("permuted", count=2), mnist, protocol, 0, torch.device(where))
        stream = BatchStream(family.sequence(3).train(1), 32, 0, 3, 1)
        orders.append([stream.indices(step).tolist() for step in (0, 1, stream.steps_per_epoch)])
        images = stream.examples.inputs[:50].cpu()
        orders[-1].append(images.flatten().tolist())
    assert orders[0] == orders[1]


@pytest.mark.parametrize(("device", "name"), on_both(lambda name: 3 if name in TYPICAL else None))
def test_an_optimizer_resumes_between_tasks(device: str, name: str, mnist: Dataset) -> None:
    suite = suite_of(name)
    kept: list[Interim] = []
    whole = trained(suite, mnist, device, keep=lambda take: kept.extend(map(stored, take())))
    begun = {trial: interim for interim in kept for trial in interim.trials}
    assert all(map(same_bits, whole, trained(suite, mnist, device, begun=begun)))


@pytest.mark.first(4)
@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("name", ["sgd", "power-sgd"])
def test_a_diverging_member_does_not_affect_others(device: str, name: str, mnist: Dataset) -> None:
    together = {r.trial.id: r for r in trained(suite_of(name, lr=[0.05, 1e30]), mnist, device)}
    statuses = {trial_row(result).status for id, result in together.items() if "1e+30" in id or "1e30" in id}
    assert statuses == {"diverged"}
    fine = [r for id, r in together.items() if "lr=0.05" in id]
    expected = trained(suite_of(name, lr=0.05), mnist, device)
    assert len(fine) == len(expected) == len(together) // 2
    for a, b in zip(fine, expected, strict=True):
        if device == "cpu":
            assert list(map(timeless, a.rows))[1:] == list(map(timeless, b.rows))[1:]
        assert accuracies(a) == pytest.approx(accuracies(b), abs=TOLERANCE)


@pytest.mark.first(4)
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")
def test_a_cohort_that_does_not_fit_on_the_device_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.execution.session.Pool", PoolHere)  # in this process, whose memory can be limited
    suite = tmp_path / "wide.yaml"
    suite.write_text(
        "name: wide\nseeds: 8\noptimizers: {it: {target: adam}}\nexperiments:\n  e:\n    metrics: []\n"
        "    tasks: {kind: permuted, count: 2}\n    models: {wide: {kind: mlp, hidden: [4000, 4000]}}\n"
        "    protocol: {max_steps: 4, train_examples: 500, test_examples: 200, validation_examples: 100}\n"
    )
    words = ["run", str(suite), "--runs-dir", str(tmp_path), "--device", "cuda", "--quiet"]
    assert main([*words, "--name", "roomy"]) == 0
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # A member needs about .4 GB (weights, gradients, two moments, workspace); the limit fits two or three.
    torch.cuda.set_per_process_memory_fraction(1.5 * 2**30 / total)
    try:
        assert main([*words, "--name", "cramped"]) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found, expected = tables(tmp_path / "cramped"), tables(tmp_path / "roomy")
    assert set(found["trials"]["note"]) == {"out of memory with 8 members together, trained in smaller cohorts"}
    assert found["accuracy"]["accuracy"].tolist() == pytest.approx(
        expected["accuracy"]["accuracy"].tolist(), abs=TOLERANCE
    )


@pytest.mark.first(4)
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")
@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "power-sgd", "shampoo"])
def test_no_step_synchronises_with_the_host(name: str, mnist: Dataset) -> None:
    """Shampoo uses the Newton root here, since `eigh` synchronises to check its convergence."""
    more = {"root": "newton", "epsilon": 1e-4} if name == "shampoo" else {}
    stack = stack_of(name, mnist, torch.device("cuda"), train_examples=960, **more)  # an epoch begins at step 30
    assert stack.take(0, 25, range(4))[1] == {}
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert stack.take(25, 45, range(4))[1] == {}, "no member's step raises"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")
@pytest.mark.parametrize("name", sorted(name for name, spec in OPTIMIZERS.items() if spec.recordable))
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(ModelSettings.of("mlp", hidden=[20]), id="mlp", marks=pytest.mark.first(1)),
        pytest.param(ModelSettings.of("cnn", channels=[4], hidden=10), id="cnn", marks=pytest.mark.first(5)),
    ],
)
def test_steps_are_recorded_and_replays_equal_executed_steps(
    name: str, model: ModelSettings, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`test_recording.py` tests the same on a CPU, with a tape instead of CUDA graphs."""
    more = {"root": "newton", "epsilon": 1e-4} if name == "shampoo" else {}
    suite = small_suite({"it": {"target": name, **more}}, seeds=2, model=model.model_dump(), **SMALL)
    made: list[torch.device] = []

    def counting(device: torch.device, work: Any) -> Any:
        made.append(device)
        return record_cuda(device, work)

    monkeypatch.setattr("optbench.engine.recording.record_cuda", counting)
    replayed = trained(suite, mnist, "cuda")
    count = len(made)
    assert count >= 2 * 2, "the gradients and the update of each task"
    assert not any("not recorded" in str(trial_row(result).note) for result in replayed)
    monkeypatch.setattr("optbench.engine.execution.recorder", lambda device: None)
    assert all(map(same_bits, replayed, trained(suite, mnist, "cuda")))
    assert len(made) == count


def stack_of(
    name: str,
    mnist: Dataset,
    device: torch.device,
    train_examples: int | None = None,
    execution: Execution | None = None,
    curves: Sequence[RateCurve | None] = (None,) * 4,
    **settings: Any,
) -> LockStep:
    """Return the lock-step stack of four members without the rest of training. curves: their schedules."""
    protocol = Protocol(batch_size=32, train_examples=train_examples)
    family = TaskFamily(TaskSettings.of("permuted", count=2), mnist, protocol, 0, device)
    network = build(ModelSettings.of("mlp", hidden=[20]), family.inputs, family.classes)
    layout = Layout.of({n: p.shape for n, p in network.named_parameters()})
    buffer = BatchBuffer(32, Normaliser.of(mnist, protocol, device))
    rows = [layout.pack(initialise(network, generator(0, seed, "initial weights"))) for seed in range(4)]
    execution = execution or Execution.on(device)
    recordings = Recordings(execution.record)
    blueprint, examples = Blueprint.of_ours(network), family.parts.train
    ways = Ways(blueprint, examples, buffer.normalise, 0, together=execution.together)
    settings = complete(name, settings)
    spec = resolve_spec(find(name), settings)
    machinery = Machinery(spec, network, layout, buffer, ways.factory(buffer, recordings), recordings, execution)
    members = [
        LaneMember(settings, None, generator(0, seed, "optimizer"), 0, curve=curve) for seed, curve in enumerate(curves)
    ]
    streams = [BatchStream(family.sequence(seed).train(0), 32, 0, seed, 0) for seed in range(4)]
    return LockStep(machinery, [row.to(device) for row in rows], members, streams, begin=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")
@pytest.mark.parametrize("name", sorted(shipped_suites().keys() - NEEDS_DATA))
def test_every_shipped_suite_runs_and_is_reproducible(name: str, tmp_path: Path) -> None:
    words = ["run", name, "--seeds", "1", "--runs-dir", str(tmp_path), "--device", "cuda", "--quiet"]
    for experiment in load_suite(shipped_suites()[name]).experiments:
        words += ["--set", f"experiments.{experiment}.protocol.max_steps=5"]
    assert main([*words, "--name", "first"]) == 0
    again = ["--runs-dir", str(tmp_path), "--device", "cuda", "--quiet", "--name", "again"]
    assert main(["run", str(tmp_path / "first/suite.yaml"), *again]) == 0
    notes = tables(tmp_path / "first")["trials"]["note"].dropna()
    if not notes.str.contains("may not repeat").any():
        assert_same_tables(tmp_path / "first", tmp_path / "again")
    record = json.loads((tmp_path / "first/run.json").read_text())
    assert record["provenance"]["device"].startswith("cuda")


def test_every_selected_device_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def found(text: str, jobs: int | None = None) -> list[str]:
        kind = "cpu" if text == "cpu" else "cuda:1" if text == "cuda:1" else "cuda:0"
        return [str(device) for device in worker_devices(text, torch.device(kind), jobs, cores=2)]

    assert found("cpu") == ["cpu", "cpu"]
    assert found("cpu", jobs=3) == ["cpu"] * 3
    assert found("cuda") == found("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert found("cuda:1") == ["cuda:1"]
    assert found("cuda", jobs=4) == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert found("cuda:1", jobs=2) == ["cuda:1", "cuda:1"]
