"""Schedules over one task or all tasks, with any companions, after resuming, and for optimizers without schedules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.engine.rates import factor
from optbench.optimizers.rates import rate_groups, scaled
from optbench.optimizers.switch import Switch
from optbench.store.tables import ADDED, CurveRow, arrow_schema
from optbench.suite import Suite, dump_suite
from optbench.suite.rate_schedule import RateSchedule
from tests.conftest import same_bits, small_suite, timeless, train_suite, trial_row
from tests.engine.test_interim import cut_and_whole
from tests.plain_recipe import train_plain

SHORT: dict[str, Any] = {
    "train_examples": 320,
    "test_examples": 50,
    "validation_examples": 50,
    "max_epochs": 1,
    "evaluate_every": 0.25,
}
SGD = {"target": "sgd", "lr": 0.1, "momentum": 0.9}
SHAMPOO = {"target": "shampoo", "lr": 0.05, "epsilon": 1e-3, "max_side": 100}
LANES: dict[str, dict[str, Any]] = {
    "elementwise": {"target": "adamw", "lr": 2e-3},
    "batched": SHAMPOO,
    "muon": {"target": "muon", "lr": 0.01, "fallback_lr": 2e-3},
    "wrapper": {"target": "l1", "base": SGD},
}
COSINE = {"kind": "cosine", "warmup": 0.2, "floor": 0.1}

pytestmark = pytest.mark.filterwarnings("ignore:Shampoo. small_side")


def suite_of(optimizers: dict[str, dict[str, Any]], schedule: dict[str, Any] | None, **more: Any) -> Suite:
    return small_suite(optimizers, metrics=["hoyer"], schedule=schedule, **{**SHORT, "seeds": 1, **more})


def curves(result: TrialResult) -> list[CurveRow]:
    return [row for row in result.rows if isinstance(row, CurveRow)]


def weights(result: TrialResult) -> dict[str, torch.Tensor]:
    assert result.weights is not None
    return result.weights


def equal(a: TrialResult, b: TrialResult) -> bool:
    return all(map(torch.equal, weights(a).values(), weights(b).values()))


@pytest.mark.filterwarnings("ignore:The epoch parameter", "ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize("span", ["task", "all"])
def test_schedules_over_one_or_all_tasks_agree_with_pytorch(span: str, mnist: Dataset) -> None:
    suite = suite_of({"it": SGD}, {**COSINE, "span": span}, early_stopping=None, max_epochs=2)
    (result,) = train_suite(suite, mnist)
    steps = trial_row(result).steps // 2 if span == "task" else trial_row(result).steps
    warmup = round(0.2 * steps)
    made: list[Any] = []
    rates: list[float] = []

    def begin(optimizer: torch.optim.Optimizer) -> None:
        (group,) = optimizer.param_groups
        group["lr"] = group["initial_lr"] = 0.1
        parts = [
            LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup),
            CosineAnnealingLR(optimizer, steps - warmup, 0.1 * 0.1),
        ]
        made[:] = [SequentialLR(optimizer, parts, [warmup])]
        rates.append(group["lr"])

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        begin(optimizer)
        return optimizer

    def after_step(_: nn.Module) -> None:
        optimizer = made[0].optimizer
        if len(rates) % steps == 0:
            begin(optimizer)
        else:
            made[0].step()
            rates.append(optimizer.param_groups[0]["lr"])

    wanted = train_plain(suite, mnist, make, after_step=after_step).state_dict()
    for key, weight in wanted.items():
        torch.testing.assert_close(weights(result)[key], weight, rtol=1e-3, atol=1e-5)
    per_task = trial_row(result).steps // 2
    found = {(row.task - 1) * per_task + row.step - 1: row.lr for row in curves(result)}
    assert len(found) == 2 * 10
    assert found == pytest.approx({step: rates[step] for step in found}, rel=1e-9)


@pytest.mark.parametrize("lane", LANES)
def test_a_constant_factor_of_1_keeps_every_bit(lane: str, mnist: Dataset) -> None:
    def trained(schedule: dict[str, Any] | None) -> TrialResult:
        return train_suite(suite_of({"it": LANES[lane]}, schedule), mnist)[0]

    plain = trained(None)
    for flat in ({"kind": "constant"}, {"kind": "linear", "floor": 1.0}):
        assert same_bits(trained(flat), plain)
    assert not equal(trained(COSINE), plain)
    assert all(row.lr is not None for row in curves(plain))


def test_members_with_different_schedules_equal_themselves_alone_and_resume(mnist: Dataset) -> None:
    """Early stopping ends tasks at different steps, so factors of `span: all` differ in the second task."""
    suite = suite_of(
        {"sgd": {**SGD, "lr": [0.1, 0.5]}, "shampoo": SHAMPOO, "muon": LANES["muon"]},
        {"kind": "linear", "warmup": 0.1, "span": "all"},
        seeds=2,
        early_stopping={"patience": 1},
        max_epochs=3,
        evaluate_every=0.5,
    )
    together = train_suite(suite, mnist)
    ended = {max(row.step for row in curves(result) if row.task == 1) for result in together[:4]}
    assert len(ended) > 1, "tasks end at different steps"
    for i in (1, 5, 7):
        assert same_bits(train_suite(suite, mnist, only=i)[0], together[i])
    for _, whole, again in cut_and_whole(suite, mnist):
        assert all(map(same_bits, whole, again))


class Stepwise(torch.optim.SGD):
    """An optimizer that halves its learning rate every third step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken % 3 == 0:
            for group in self.param_groups:
                group["lr"] *= 0.5


class Rateless(torch.optim.Optimizer):
    """An optimizer whose learning rate is a constant in the code, where no scheduler can find it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(0.05 * parameter.grad)


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    weights, biases = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    return torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.01}], lr=0.1)


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_every_group_of_a_users_optimizer_is_scaled_unless_declared_otherwise(mnist: Dataset) -> None:
    own = {
        "groups": {"target": f"{__name__}:two_groups"},
        "stepwise": {"target": f"{__name__}:Stepwise", "lr": 0.1},
        "rateless": {"target": f"{__name__}:Rateless"},
        "declared": {"target": f"{__name__}:plain_sgd", "needs": "no-schedule"},
        "stacked": {"target": "torch.optim:SGD", "lr": 0.1, "elementwise": True},
        "apart": {"target": "torch.optim:SGD", "lr": 0.1},
    }
    given = RateSchedule.model_validate(COSINE)
    scheduled, constant = (
        train_suite(suite_of(own, schedule, early_stopping=None), mnist) for schedule in (COSINE, None)
    )
    groups, stepwise, rateless, declared, stacked, apart = scheduled
    assert trial_row(stacked).note == trial_row(apart).note
    for key, weight in weights(apart).items():
        torch.testing.assert_close(weights(stacked)[key], weight, rtol=1e-3, atol=1e-5)
    assert not equal(groups, constant[0])
    for result, notes in ((rateless, "no parameter group has an lr"), (declared, "plain_sgd does not support one")):
        assert f"trained without the schedule: {notes}" in str(trial_row(result).note).replace(f"{__name__}:", "")
    assert not any("schedule" in str(trial_row(result).note) for result in (groups, stepwise, *constant))
    assert equal(rateless, constant[2])
    assert equal(declared, constant[3])
    assert {row.lr for row in curves(rateless)} == {None}
    assert {row.lr for row in curves(declared)} == {0.1}
    for row in curves(groups):
        assert row.lr == pytest.approx(0.1 * factor(given, 10, row.step - 1))
    for row in curves(stepwise):
        assert row.lr == pytest.approx(
            0.1 * 0.5 ** ((10 * (row.task - 1) + row.step) // 3) * factor(given, 10, row.step - 1)
        )


@pytest.mark.parametrize("name", ["prodigy", "rprop"])
def test_an_optimizer_that_takes_no_schedule_trains_without_it_and_has_a_note(name: str, mnist: Dataset) -> None:
    pytest.importorskip("pytorch_optimizer")
    wrapped = {"target": "gradient-noise", "base": {"target": name}}
    optimizers = {"it": {"target": name}, "noisy": wrapped}
    suite, plain = suite_of(optimizers, COSINE), suite_of(optimizers, None)
    for scheduled, constant in zip(train_suite(suite, mnist), train_suite(plain, mnist), strict=True):
        assert f"trained without the schedule: {name} does not support one" in str(trial_row(scheduled).note)
        assert equal(scheduled, constant)
        assert list(map(timeless, curves(scheduled))) == list(map(timeless, curves(constant)))


def test_learning_rates_are_restored_exactly_and_changes_by_the_optimizer_are_kept() -> None:
    parameter = nn.Parameter(torch.ones(1))
    rate = torch.tensor(0.3)
    optimizer = torch.optim.SGD([{"params": [parameter]}, {"params": [nn.Parameter(torch.ones(1))], "lr": rate}], 0.7)
    groups = rate_groups(optimizer)
    with scaled(groups, 0.3):
        assert groups[0]["lr"] == 0.7 * 0.3
        assert rate.item() == pytest.approx(0.09)
    assert (groups[0]["lr"], rate) == (0.7, torch.tensor(0.3))
    with scaled(groups, 0.3):
        groups[0]["lr"] *= 0.5
        rate.mul_(0.5)
    assert groups[0]["lr"] == pytest.approx(0.35)
    assert rate.item() == pytest.approx(0.15)


def test_a_switch_hands_over_unscaled_settings() -> None:
    """Half the second learning rate equals the first here, so a scaled value would look unchanged."""
    parameter = nn.Parameter(torch.ones(2))
    first, then = {"target": "sgd", "lr": 0.1, "momentum": 0.9}, {"target": "sgd", "lr": 0.2, "momentum": 0.9}
    switch = Switch([parameter], first, then, at=2, state="keep")
    for wanted in (0.1, 0.1, 0.2, 0.2):
        parameter.grad = torch.ones(2)
        with scaled(rate_groups(switch, stepping=True), 0.5):
            switch.step()
        active = switch.first if switch.taken <= 2 else switch.then
        assert {group["lr"] for group in rate_groups(active)} == {wanted}


def test_a_dry_run_describes_the_schedule_and_names_optimizers_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = suite_of({"sgd": SGD, "free": {"target": "prodigy"}}, {"kind": "linear", "span": "all"})
    (tmp_path / "s.yaml").write_text(dump_suite(suite))
    assert main(["run", str(tmp_path / "s.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "The learning rate falls linearly to 0 over the steps of all tasks." in said
    assert "Optimizers that do not support the schedule and are trained without it: free." in said
    assert main(["list", "optimizers"]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("no support for schedules") == 3


def test_earlier_runs_without_learning_rates_can_be_read() -> None:
    assert ("curves", "lr") in ADDED
    assert arrow_schema(CurveRow).field("lr").nullable
