"""Code for CUDA devices, tested on a simulated device: no operation mixes devices, and none waits unnecessarily.

These tests are run by `test_simulated_device.py` in separate processes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from optbench.cli import main
from optbench.data import Dataset, InputSpec
from optbench.engine.rates import RateCurve
from optbench.kinds import calling
from optbench.metrics.own import MetricSettings
from optbench.optimizers.registry import OPTIMIZERS
from optbench.store.tables import AccuracyRow, MetricRow
from optbench.suite import load_suite, shipped_suites
from optbench.suite.rate_schedule import RateSchedule
from tests import own_models, simulated_device
from tests.conftest import NEEDS_DATA, PoolHere, tables, trial_row
from tests.engine.test_devices import accuracies, stack_of, suite_of, trained
from tests.engine.test_recording import ALL, RECORDABLE
from tests.simulated_device import Simulated
from tests.texts import GPT, small_text, text_suite

pytestmark = pytest.mark.filterwarnings("ignore:Shampoo. small_side")
DEVICE = str(simulated_device.device())
EXAMPLES = 4
"""The number of correct examples, of 200 or of a group of classes, may differ by this much, because members in one call
are summed in a different order than one by one."""


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with Simulated():
        yield


@pytest.fixture
def _arguments_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RECORDABLE:
        there = {simulated_device.NAME: OPTIMIZERS[name].arguments_on.get("cuda", {})}
        monkeypatch.setitem(OPTIMIZERS, name, dataclasses.replace(OPTIMIZERS[name], arguments_on=there))


def test_the_simulated_device_behaves_like_a_device() -> None:
    there, here = torch.ones(3, device=DEVICE), torch.ones(3)
    assert (there.device.type, here.device.type) == (simulated_device.NAME, "cpu")
    assert torch.tensor([1.0], device=DEVICE).device == here.to(DEVICE).device == there.device
    assert (there + torch.tensor(1.0)).cpu().tolist() == [2.0, 2.0, 2.0]
    for wrong in (lambda: there + here, lambda: here.add_(there), lambda: torch.stack([there, here])):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    before = sum(simulated_device.asked.values())
    assert bool((there > 0).all())
    assert there.sum().item() == 3.0
    assert sum(simulated_device.asked.values()) == before + 2


@pytest.mark.parametrize(
    "name",
    [
        # One optimizer taken unchanged from a package is enough for every commit.
        pytest.param(name, marks=[pytest.mark.slow] if spec.source == "pytorch-optimizer" and name != "lion" else [])
        for name, spec in OPTIMIZERS.items()
    ],
)
def test_an_optimizer_trains_on_the_device_as_on_the_cpu(name: str, mnist: Dataset) -> None:
    suite = suite_of(name)
    for a, b in zip(trained(suite, mnist, "cpu"), trained(suite, mnist, DEVICE), strict=True):
        assert (trial_row(b).status, trial_row(b).error_message) == ("ok", None)
        assert trial_row(a).init_hash == trial_row(b).init_hash
        assert accuracies(b) == pytest.approx(accuracies(a), abs=EXAMPLES / 200)


@pytest.mark.usefixtures("_arguments_of_cuda")
@pytest.mark.parametrize("name", ALL)
def test_no_step_waits_for_the_device_or_transfers_to_it(name: str, mnist: Dataset) -> None:
    settings = dict(ALL[name])
    falling = RateCurve(RateSchedule(kind="cosine", warmup=0.2), 30)
    scheduled = (falling, None, dataclasses.replace(falling, before=3), falling)
    stack = stack_of(settings.pop("target"), mnist, torch.device(DEVICE), curves=scheduled, **settings)
    assert stack.take(0, 12, range(4))[1] == {}
    simulated_device.asked.clear()
    simulated_device.crossed.clear()
    losses, raised, _ = stack.take(12, 30, range(4))
    assert raised == {}
    assert simulated_device.asked == {}
    assert simulated_device.crossed == {}
    assert all(math.isfinite(loss) for row in losses.tolist() for loss in row)


@pytest.fixture
def _without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optbench.precision.has_float64", lambda device: device.type == "cpu")
    monkeypatch.setattr(simulated_device, "without", [torch.float64])


@pytest.mark.usefixtures("_without_float64")
@pytest.mark.parametrize("name", ["sgd", "adamw", "power-sgd", "shampoo", "newton"])
def test_a_device_without_float64_trains_and_is_measured(name: str, mnist: Dataset) -> None:
    """Train as on Apple's GPUs, which have no float64."""
    with pytest.raises(TypeError, match="has no"):
        torch.ones(2, device=DEVICE).double()
    # With on-demand refreshes the CPU would refresh at other steps than a device.
    fixed: dict[str, Any] = {"precondition_frequency": 10}
    settings = {
        "shampoo": fixed,
        "newton": fixed | {"root": "newton", "epsilon": 1e-4, "max_side": 100},
    }.get(name, {})
    suite = suite_of("shampoo" if name == "newton" else name, **settings)
    names = ["effective_rank", "class_cosine_mean", "hoyer", "hessian_trace", "pruned_accuracy_0.1_layer"]
    metrics = [MetricSettings.of(name) for name in names]
    experiment = suite.experiments["small"].model_copy(update={"metrics": metrics})
    suite = suite.model_copy(update={"experiments": {"small": experiment}})
    for a, b in zip(trained(suite, mnist, "cpu"), trained(suite, mnist, DEVICE), strict=True):
        assert (trial_row(b).status, trial_row(b).error_message) == ("ok", None)
        assert accuracies(b) == pytest.approx(accuracies(a), abs=EXAMPLES / 200)
        found, expected = ([row.value for row in r.rows if isinstance(row, MetricRow)] for r in (b, a))
        assert len(found) == len(expected) > 10
        assert [value is None for value in found] == [value is None for value in expected]


def test_the_order_of_an_epoch_is_moved_to_the_device_without_waiting(mnist: Dataset) -> None:
    stack = stack_of("sgd", mnist, torch.device(DEVICE), train_examples=320)  # ten steps
    stack.take(0, 10, range(4))
    simulated_device.asked.clear()
    simulated_device.crossed.clear()
    stack.take(10, 31, range(4))
    assert simulated_device.asked == {}
    assert simulated_device.crossed == {"to": 3 * 4}


@pytest.mark.parametrize("name", sorted(shipped_suites().keys() - NEEDS_DATA))
def test_a_shipped_suite_runs_on_the_device_as_on_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("optbench.execution.session.Pool", PoolHere)
    monkeypatch.setattr("optbench.engine.device.resolve", torch.device)
    words = ["run", name, "--seeds", "1", "--runs-dir", str(tmp_path), "--quiet"]
    for experiment, its in load_suite(shipped_suites()[name]).experiments.items():
        small = {"max_steps": 4, "train_examples": 1500, "test_examples": 200, "validation_examples": 200}
        if its.dataset.domains:
            small = {"max_steps": 4, "test_examples": 10, "validation_examples": 10}
            words.append(f"--set=experiments.{experiment}.tasks.order=[code, prose]")
        words += [f"--set=experiments.{experiment}.protocol.{key}={value}" for key, value in small.items()]
    for place in ("cpu", DEVICE):
        assert main([*words, "--device", place, "--name", place.partition(":")[0]]) == 0, capsys.readouterr().err
    here, there = (tables(tmp_path / place) for place in ("cpu", simulated_device.NAME))
    assert set(there["trials"]["device"]) == {DEVICE}
    assert there["trials"]["init_hash"].tolist() == here["trials"]["init_hash"].tolist()
    assert there["trials"]["status"].tolist() == here["trials"]["status"].tolist()
    for column in ("accuracy", "validation_accuracy"):
        examples = here["accuracy"]["examples"]
        apart = (there["accuracy"][column] - here["accuracy"][column]).abs() * examples
        # For text, where an example has many predictions, the same share may differ.
        assert (apart < (examples / 200).clip(1) * (EXAMPLES + 0.5)).all()
    for table, column in (("metrics", "value"), ("spectra", "eigenvalue"), ("pruning", "accuracy")):
        assert there[table][column].isna().tolist() == here[table][column].isna().tolist()
    if (tmp_path / "cpu/pairs.parquet").exists():
        pairs = [pd.read_parquet(tmp_path / place / "pairs.parquet") for place in ("cpu", simulated_device.NAME)]
        assert pairs[0]["note"].isna().tolist() == pairs[1]["note"].isna().tolist()


@pytest.mark.parametrize(
    ("model", "note"), [(own_models.VisionTransformer, None), (own_models.ResNet, "batch norm, dropout")]
)
def test_a_users_model_trains_on_the_device_as_on_the_cpu(
    model: type[torch.nn.Module], note: str | None, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members train together if possible, otherwise one by one with a note."""

    def build(settings: object, inputs: InputSpec, outputs: int, seed: int = 0) -> object:
        with calling(seed):
            return model(inputs, outputs)

    monkeypatch.setattr("optbench.engine.blueprint.build", build)
    suite = suite_of("adamw")
    here, there = (trained(suite, mnist, place) for place in ("cpu", DEVICE))
    for a, b in zip(here, there, strict=True):
        assert (trial_row(b).status, trial_row(b).error_message) == ("ok", None)
        assert trial_row(a).init_hash == trial_row(b).init_hash
        assert accuracies(b) == pytest.approx(accuracies(a), abs=2 * EXAMPLES / 200)
        found = str(trial_row(b).note)
        assert f"trained member by member: {note}" in found if note else "member by member" not in found


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_transformer_trains_on_the_device_as_on_the_cpu(dropout: float) -> None:
    """Members train together, or one by one with dropout, and are scored together in bits per byte."""
    suite = text_suite({"target": "adamw", "lr": [3e-3, 1e-2]}, {**GPT, "dropout": dropout}, early_stopping=False)
    here, there = (trained(suite, small_text(), place) for place in ("cpu", DEVICE))
    for a, b in zip(here, there, strict=True):
        assert (trial_row(b).status, trial_row(b).error_message) == ("ok", None)
        assert trial_row(b).gradients == ("member by member" if dropout else "torch.func")
        bits = [[row.bits_per_byte for row in one.rows if isinstance(row, AccuracyRow)] for one in (a, b)]
        # Dropout masks differ between devices.
        assert bits[1] == pytest.approx(bits[0], abs=0.3 if dropout else 1e-3)
