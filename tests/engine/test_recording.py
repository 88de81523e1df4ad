"""Recorded and replayed work gives the same bits or is not replayed. On a CPU a tape replaces a CUDA graph.

These tests also cover behaviour specific to accelerators: all members are processed in one call, and members that have
stopped stay in the stack.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench.data import Dataset
from optbench.engine import TrialResult, Workspace, train
from optbench.engine.execution import Execution
from optbench.engine.lockstep import LockStep
from optbench.engine.rates import RateCurve
from optbench.engine.recording import WARM_UP, Recorded, Recorder, Recordings, recorder
from optbench.optimizers import factors, roots, shampoo, shampoo_roots
from optbench.optimizers.registry import OPTIMIZERS
from optbench.plan import cohorts, trials
from optbench.store.tables import AccuracyRow, CurveRow
from optbench.suite import Suite
from optbench.suite.rate_schedule import RateSchedule
from tests.conftest import same_bits, small_suite, trial_row
from tests.engine.test_devices import stack_of
from tests.engine.test_engine import RATES
from tests.tape import Tape, tape

pytestmark = pytest.mark.filterwarnings("ignore:Shampoo. small_side")
RECORDABLE = sorted(name for name, spec in OPTIMIZERS.items() if spec.recordable)
# Use the diagonal on the side of the pixels, and refresh roots in only some of the steps.
SHAMPOO = {
    "target": "shampoo",
    "lr": 0.1,
    "epsilon": 1e-4,
    "max_side": 30,
    "small_side": 9,
    "precondition_frequency": 5,
}
MORE: dict[str, dict[str, Any]] = {
    "sgd with momentum": {"target": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "amsgrad": {"target": "adamw", "lr": 1e-3, "amsgrad": True},
    "rmsprop, centred": {"target": "rmsprop", "lr": 1e-3, "centered": True, "momentum": 0.5},
    "shampoo": SHAMPOO,
    "shampoo by newton": SHAMPOO | {"root": "newton"},
    # Roots refreshed on demand, which on a device means by a schedule, to avoid synchronising.
    "shampoo by need": {"target": "shampoo", "lr": 0.1, "epsilon": 1e-4, "max_side": 30, "root": "newton"},
    "diagonal, grafted": SHAMPOO | {"preset": "adam-grafted", "root": "newton", "structure": "diagonal-factor"},
}
ALL = {name: {"target": name, "lr": RATES[name]} for name in RECORDABLE} | MORE


@pytest.fixture(scope="module")
def mnist(coarse_mnist: Dataset) -> Dataset:
    return coarse_mnist


COUNT_ON_DEVICE = [
    module
    for name, module in sys.modules.items()
    if name.startswith("torch.optim.") and hasattr(module, "_get_capturable_supported_devices")
]


@pytest.fixture
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use CUDA's code paths on the CPU: torch's implementations for CUDA, and one call for all Shampoo members."""
    for module in (factors, roots, shampoo, shampoo_roots):
        monkeypatch.setattr(module, "one_by_one", lambda x: False)
    for module in COUNT_ON_DEVICE:
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    for name in RECORDABLE:
        there = dict(OPTIMIZERS[name].arguments_on.get("cuda", {}))
        if OPTIMIZERS[name].source == "torch" and "fused" not in there:
            there["foreach"] = True  # torch's default on CUDA
        monkeypatch.setitem(OPTIMIZERS, name, dataclasses.replace(OPTIMIZERS[name], arguments_on={"cpu": there}))


def trained(
    suite: Suite, mnist: Dataset, *, together: bool = True, record: Recorder | None = None
) -> list[TrialResult]:
    workspace = Workspace.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))
    workspace = dataclasses.replace(workspace, execution=Execution(together, record))
    return [result for cohort in cohorts(trials(suite)) for result in train(cohort, workspace, lambda progress: None)]


def suite_of(optimizer: dict[str, Any], **more: Any) -> Suite:
    return small_suite(
        {"it": optimizer}, **{"seeds": 2, "max_epochs": 2, "evaluate_every": 0.5, "metrics": ["hoyer"], **more}
    )


def refused(results: list[TrialResult]) -> set[str]:
    return {note for result in results for note in str(trial_row(result).note).split("; ") if "not recorded" in note}


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("name", ALL)
def test_replayed_steps_equal_executed_steps_bit_for_bit(
    name: str, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tape, "made", 0)
    monkeypatch.setattr(Tape, "played", 0)
    suite = suite_of(ALL[name])
    replayed = trained(suite, mnist, record=tape)
    expected = trained(suite, mnist)
    assert all(map(same_bits, replayed, expected))
    assert {trial_row(result).status for result in replayed} == {"ok"}
    assert refused(replayed) == set()
    steps = max(trial_row(result).steps for result in replayed)
    # At least the gradients and the update of each of two tasks; Shampoo has several kinds of updates.
    assert Tape.made >= 4
    assert Tape.played > 1.5 * steps - Tape.made * (WARM_UP + 2)
    apart = trained(suite, mnist, together=False)
    for a, b in zip(replayed, apart, strict=True):
        assert trial_row(a).init_hash == trial_row(b).init_hash
        assert accuracies(a) == pytest.approx(accuracies(b), abs=0.1)


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("name", [name for name in RECORDABLE if OPTIMIZERS[name].takes_schedule])
def test_replayed_steps_follow_a_schedule(name: str, mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate is read from device memory and not frozen into the recording."""
    monkeypatch.setattr(Tape, "played", 0)
    settings = dict(ALL[name])
    target = settings.pop("target")
    falling = RateCurve(RateSchedule(kind="linear", warmup=0.2, floor=0.1), 16)
    curves = falling, None, dataclasses.replace(falling, before=2), falling

    def taken(
        record: Recorder | None, curves: Sequence[RateCurve | None], steps: int = 16
    ) -> tuple[Tensor, list[float | None]]:
        execution = Execution(True, record)
        stack = stack_of(target, mnist, torch.device("cpu"), execution=execution, curves=curves, **settings)
        assert stack.take(0, steps, range(4))[1] == {}
        return torch.stack([stack.row(i) for i in range(4)]), [stack.rate(i) for i in range(4)]

    (replayed, rates), (plain, plain_rates) = taken(tape, curves), taken(None, curves)
    assert Tape.played >= 12
    (start, _), (constant, _) = taken(None, curves, 0), taken(None, [None] * 4)
    moved = (constant - start).norm(dim=1)
    # Equal only to rounding, since the device holds the learning rate in float32.
    assert ((replayed - plain).norm(dim=1) < 1e-2 * moved).all()
    assert torch.equal((replayed - constant).norm(dim=1) > 5e-2 * moved, torch.tensor([True, False, True, True]))
    wanted = [settings["lr"] * (1.0 if curve is None else curve.factor(15)) for curve in curves]
    assert rates == plain_rates == pytest.approx(wanted, rel=1e-12)


def accuracies(result: TrialResult) -> list[float]:
    return [row.accuracy for row in result.rows if isinstance(row, AccuracyRow) and row.accuracy is not None]


def curves(result: TrialResult) -> list[tuple[int, int]]:
    return [(row.task, row.step) for row in result.rows if isinstance(row, CurveRow)]


@pytest.mark.parametrize("record", [None, tape], ids=["executed", "replayed"])
def test_members_that_have_stopped_stay_in_the_stack_unchanged(mnist: Dataset, record: Recorder | None) -> None:
    """Of nine members some stop early, some diverge and some continue, each as in a cohort of one learning rate."""
    rates = [0.02, 0.5, 1e30]
    patient = {"early_stopping": {"patience": 1}, "max_epochs": 4, "evaluate_every": 0.25}
    together = trained(
        suite_of({"target": "sgd", "lr": rates, "momentum": 0.9}, seeds=3, **patient), mnist, record=record
    )
    lengths = {trial_row(result).last_step for result in together}
    assert len(lengths) > 3, "members stop at different steps"
    assert {trial_row(result).status for result in together} == {"ok", "diverged"}
    for rate in rates:
        fellows = [result for result in together if result.trial.hyperparameters["lr"] == rate]
        alone = trained(
            suite_of({"target": "sgd", "lr": rate, "momentum": 0.9}, seeds=3, **patient), mnist, record=record
        )
        for a, b in zip(fellows, alone, strict=True):
            assert trial_row(a).status == trial_row(b).status
            assert trial_row(a).last_step == trial_row(b).last_step
            assert curves(a) == curves(b)
            assert accuracies(a) == pytest.approx(accuracies(b), abs=1e-6)


def plus_one(total: Tensor, calls: list[int]) -> int:
    calls[0] += 1
    total.add_(1.0)
    return 7


def test_work_is_replayed_without_being_called() -> None:
    total, calls, recordings = torch.zeros(1), [0], Recordings(tape)
    recorded: Recorded[int] = Recorded("it", recordings)
    for step in range(1, 20):
        assert recorded(lambda: plus_one(total, calls), lambda: [total]) == 7
        assert total.item() == step
    assert calls[0] == WARM_UP + 2  # once more for the expected result, and once for the recording
    assert recordings.refused == {}
    assert recorder(torch.device("cpu")) is None


def in_recording() -> bool:
    return bool(torch.utils._python_dispatch.is_in_torch_dispatch_mode())


def of_python(total: Tensor, calls: list[int]) -> None:
    calls[0] += 1
    total.add_(calls[0])


def that_asks(total: Tensor, calls: list[int]) -> None:
    total.add_(1.0 if total.item() < 5 else 2.0)


def that_raises(total: Tensor, calls: list[int]) -> None:
    total.add_(1.0)
    if in_recording():
        raise ValueError("not twice\nand more")


def that_answers(total: Tensor, calls: list[int]) -> dict[int, str]:
    total.add_(1.0)
    return {0: "not in a recording"} if in_recording() else {}


REFUSED = {
    that_asks: "RuntimeError: aten._local_scalar_dense.default is not permitted when a stream is recorded",
    that_raises: "ValueError: not twice",
    that_answers: "RuntimeError: expected the recorded call to return {}, got {0: 'not in a recording'}",
}


def totals(work: Callable[..., object], recordings: Recordings) -> list[float]:
    """Return the result of twelve calls."""
    total, calls = torch.zeros(1), [0]
    recorded: Recorded[object] = Recorded("it", recordings)
    found = []
    for _ in range(12):
        recorded(lambda: work(total, calls), lambda: [total])
        found.append(total.item())
    return found


@pytest.mark.parametrize("work", REFUSED)
def test_work_that_cannot_be_replayed_is_executed(work: Callable[..., object]) -> None:
    recordings = Recordings(tape)
    assert totals(work, recordings) == totals(work, Recordings(None))
    assert recordings.refused == {"it": REFUSED[work]}


def test_work_that_depends_on_python_state_is_detected() -> None:
    """Such work violates the contract: recording it changed the Python state without taking a step."""
    recordings = Recordings(tape)
    found, expected = totals(of_python, recordings), totals(of_python, Recordings(None))
    assert recordings.refused == {"it": "a replay gave different numbers"}
    assert found[: WARM_UP + 1] == expected[: WARM_UP + 1]
    assert found[WARM_UP + 1] == found[WARM_UP] + WARM_UP + 3


def test_a_failed_recording_is_not_tried_again_in_the_cohort() -> None:
    tried = []

    def never(work: Callable[[], object]) -> Callable[[], None]:
        tried.append(work)
        raise RuntimeError("no")

    recordings = Recordings(never)
    for _ in range(3):
        assert totals(plus_one, recordings) == list(range(1, 13))
    assert len(tried) == 1


def test_nan_values_do_not_prevent_replaying() -> None:
    total = torch.tensor([0.0, float("nan")])
    recordings = Recordings(tape)
    recorded: Recorded[int] = Recorded("it", recordings)
    for _ in range(10):
        recorded(lambda: plus_one(total, [0]), lambda: [total])
    assert recordings.refused == {}
    assert total[0] == 10


@pytest.mark.parametrize("where", ["copies", "recording"])
def test_work_is_executed_if_there_is_no_memory_for_a_recording(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cohort is not halved, because the work itself fits."""

    def short(*given: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if where == "copies":
        monkeypatch.setattr(Tensor, "clone", short)
    recordings = Recordings(short if where == "recording" else tape)
    assert totals(plus_one, recordings) == list(range(1, 13))
    assert recordings.refused == {"it": "not enough memory"}


def test_a_device_error_is_raised() -> None:
    def broken(work: Callable[[], object]) -> Callable[[], None]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        totals(plus_one, Recordings(broken))


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("name", ["adamw", "shampoo", "sam"])
@pytest.mark.parametrize("record", [None, tape], ids=["executed", "replayed"])
def test_a_finished_stack_releases_its_memory(name: str, record: Recorder | None, mnist: Dataset) -> None:
    """Device memory is released immediately, not at the next garbage collection."""
    settings = dict(ALL.get(name, {"target": name}))
    target, execution = settings.pop("target"), Execution(True, record)

    def make() -> LockStep:
        return stack_of(target, mnist, torch.device("cpu"), execution=execution, **settings)

    make()  # first-time imports leave frames behind
    gc.collect()
    gc.disable()
    try:
        stack = make()
        stack.take(0, 8, range(4))
        kept = [weakref.ref(stack), weakref.ref(stack._lane), weakref.ref(stack._gradients)]
        del stack
        assert [ref() for ref in kept] == [None, None, None]
    finally:
        gc.enable()


def test_a_trial_notes_that_its_steps_were_not_recorded(mnist: Dataset) -> None:
    def never(work: Callable[[], object]) -> Callable[[], None]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    suite = suite_of({"target": "sgd", "lr": 0.1})
    results = trained(suite, mnist, record=never)
    reason = "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert refused(results) == {f"gradients not recorded: {reason}", f"update not recorded: {reason}"}
    assert all(map(same_weights, results, trained(suite, mnist)))


def same_weights(a: TrialResult, b: TrialResult) -> bool:
    assert a.weights is not None
    assert b.weights is not None
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
