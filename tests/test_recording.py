"""Work that is recorded and replayed: the same bits, or none of it. On a CPU a tape stands for a CUDA graph.

These are also the tests of what an accelerator does differently: all members in one call, and who has stopped is
carried along.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import same_bits, small_suite, trial_row
from tape import Tape, tape
from test_engine import RATES
from torch import Tensor

from optbench.data import Dataset
from optbench.engine import Setting, TrialResult, train
from optbench.engine.execution import Execution
from optbench.engine.recording import WARM_UP, Recorded, Recorder, Recordings, recorder
from optbench.optimizers import roots, shampoo
from optbench.optimizers.registry import OPTIMIZERS
from optbench.plan import cohorts, trials
from optbench.store.tables import AccuracyRow, CurveRow
from optbench.suite import Suite

RECORDABLE = sorted(name for name, spec in OPTIMIZERS.items() if spec.recordable)
# The pixels' side by its diagonal, since a root of it takes seconds here; and some steps that refresh no root.
SHAMPOO = {
    "target": "shampoo",
    "lr": 0.1,
    "epsilon": 1e-4,
    "max_side": 100,
    "small_side": 9,
    "precondition_frequency": 5,
}
MORE: dict[str, dict[str, Any]] = {
    "sgd with momentum": {"target": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "amsgrad": {"target": "adamw", "lr": 1e-3, "amsgrad": True},
    "rmsprop, centred": {"target": "rmsprop", "lr": 1e-3, "centered": True, "momentum": 0.5},
    "shampoo": SHAMPOO,
    "shampoo by newton": SHAMPOO | {"root": "newton"},
    "diagonal, grafted": SHAMPOO | {"preset": "adam-grafted", "root": "newton", "structure": "diagonal-factor"},
}
ALL = {name: {"target": name, "lr": RATES[name]} for name in RECORDABLE} | MORE


COUNT_ON_DEVICE = [
    module
    for name, module in sys.modules.items()
    if name.startswith("torch.optim.") and hasattr(module, "_get_capturable_supported_devices")
]


@pytest.fixture
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU what a CUDA device is given: torch's implementations for it, and Shampoo's members in one call."""
    for module in (roots, shampoo):
        monkeypatch.setattr(module, "one_by_one", lambda x: False)
    for module in COUNT_ON_DEVICE:
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    for name in RECORDABLE:
        there = dict(OPTIMIZERS[name].arguments_on.get("cuda", {}))
        if OPTIMIZERS[name].source == "torch" and "fused" not in there:
            there["foreach"] = True  # its own choice there
        monkeypatch.setitem(OPTIMIZERS, name, dataclasses.replace(OPTIMIZERS[name], arguments_on={"cpu": there}))


def trained(
    suite: Suite, mnist: Dataset, *, together: bool = True, record: Recorder | None = None
) -> list[TrialResult]:
    setting = Setting.of(suite.experiments["small"], mnist, suite.seed, torch.device("cpu"))
    setting = dataclasses.replace(setting, execution=Execution(together, record))
    return [result for cohort in cohorts(trials(suite)) for result in train(cohort, setting, lambda progress: None)]


def suite_of(optimizer: dict[str, Any], **more: Any) -> Suite:
    return small_suite({"it": optimizer}, **{"seeds": 2, "max_epochs": 2, "evaluate_every": 0.5, **more})


def refused(results: list[TrialResult]) -> set[str]:
    return {note for result in results for note in str(trial_row(result).note).split("; ") if "not recorded" in note}


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("name", ALL)
def test_replayed_steps_are_the_steps_to_the_last_bit(
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
    # Of each of two tasks the gradients and the update, in which Shampoo has several kinds of steps.
    assert Tape.made >= 4
    assert Tape.played > 1.5 * steps - Tape.made * (WARM_UP + 2)
    apart = trained(suite, mnist, together=False)
    for a, b in zip(replayed, apart, strict=True):
        assert trial_row(a).init_hash == trial_row(b).init_hash
        assert accuracies(a) == pytest.approx(accuracies(b), abs=0.1)


def accuracies(result: TrialResult) -> list[float]:
    return [row.accuracy for row in result.rows if isinstance(row, AccuracyRow) and row.accuracy is not None]


def curves(result: TrialResult) -> list[tuple[int, int]]:
    return [(row.task, row.step) for row in result.rows if isinstance(row, CurveRow)]


@pytest.mark.parametrize("record", [None, tape], ids=["as it is", "replayed"])
def test_who_has_stopped_is_carried_along_and_keeps_what_it_had(mnist: Dataset, record: Recorder | None) -> None:
    """Of nine members some stop early, some diverge and some go on: each as in a cohort of those alike."""
    rates = [0.02, 0.5, 1e30]
    patient = {"early_stopping": {"patience": 1}, "max_epochs": 4, "evaluate_every": 0.25}
    together = trained(
        suite_of({"target": "sgd", "lr": rates, "momentum": 0.9}, seeds=3, **patient), mnist, record=record
    )
    lengths = {trial_row(result).last_step for result in together}
    assert len(lengths) > 3, "they stop at different steps"
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


def counter(start: int = 0) -> tuple[Callable[[], int], Tensor, list[int]]:
    """Work that adds 1 on the device; and, when told so, what Python counts."""
    total, calls = torch.tensor([float(start)]), [0]

    def work() -> int:
        calls[0] += 1
        total.add_(1.0)
        return calls[0]

    return work, total, calls


def test_work_is_replayed_without_being_called() -> None:
    work, total, calls = counter()
    recordings = Recordings(tape)
    recorded = Recorded(work, lambda: [total], recordings)
    for step in range(1, 20):
        recorded()
        assert total.item() == step
    assert calls[0] == WARM_UP + 2  # once more to know what it comes to, and once to be recorded
    assert recorded() == WARM_UP + 1
    assert recordings.refused == set()
    assert recorder(torch.device("cpu")) is None


def of_python(total: Tensor, calls: list[int]) -> None:
    calls[0] += 1
    total.add_(calls[0])


def that_asks(total: Tensor, calls: list[int]) -> None:
    calls[0] += 1
    total.add_(1.0 if total.item() < 5 else 2.0)


def that_raises(total: Tensor, calls: list[int]) -> None:
    calls[0] += 1
    total.add_(1.0)
    if torch.utils._python_dispatch.is_in_torch_dispatch_mode():
        raise ValueError("not twice\nand more")


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (of_python, "a replay came to other numbers"),
        (that_asks, "RuntimeError: aten._local_scalar_dense.default is not permitted when a stream is recorded"),
        (that_raises, "ValueError: not twice"),
    ],
)
def test_work_that_cannot_be_replayed_is_done_as_it_is(work: Callable[..., None], reason: str) -> None:
    def totals(recordings: Recordings) -> list[float]:
        total, calls = torch.zeros(1), [0]
        recorded = Recorded(lambda: work(total, calls), lambda: [total], recordings)
        found = []
        for _ in range(12):
            if calls[0] == WARM_UP + 2 and work is of_python:
                calls[0] -= 1  # the recording's own call, of which no tensor knows
            recorded()
            found.append(total.item())
        return found

    recordings = Recordings(tape)
    assert totals(recordings) == totals(Recordings(None))
    assert recordings.refused == {reason}


def test_numbers_that_are_none_are_no_reason_to_refuse() -> None:
    total = torch.tensor([0.0, float("nan")])
    recordings = Recordings(tape)
    recorded = Recorded(lambda: total.add_(1.0), lambda: [total], recordings)
    for _ in range(10):
        recorded()
    assert recordings.refused == set()
    assert total[0] == 10


def test_what_the_machine_lacks_is_raised_and_not_noted() -> None:
    def short(work: Callable[[], object]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    total = torch.zeros(1)
    recorded = Recorded(lambda: total.add_(1.0), lambda: [total], Recordings(short))
    for _ in range(WARM_UP):
        recorded()
    with pytest.raises(torch.OutOfMemoryError):
        recorded()


def test_a_trial_says_that_its_steps_were_not_recorded(mnist: Dataset) -> None:
    def never(work: Callable[[], object]) -> Callable[[], None]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    suite = suite_of({"target": "sgd", "lr": 0.1})
    results = trained(suite, mnist, record=never)
    expected = "steps not recorded: RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert refused(results) == {expected}
    assert all(map(same_weights, results, trained(suite, mnist)))


def same_weights(a: TrialResult, b: TrialResult) -> bool:
    assert a.weights is not None
    assert b.weights is not None
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
