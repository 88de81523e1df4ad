"""`protocol.precision: bfloat16` applies PyTorch's autocast to the forward passes of training, and to nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.engine.execution import Execution
from optbench.optimizers.sam import Sam
from optbench.store.tables import CurveRow
from tests.conftest import same_bits, small_suite, train_suite, trial_row
from tests.plain_recipe import train_plain
from tests.texts import GPT, small_text, text_suite

FEW: dict[str, Any] = {"early_stopping": None, "max_epochs": 1, "train_examples": 256, "test_examples": 50}
BF16 = {"precision": "bfloat16", **FEW}
SGD = {"target": "sgd", "lr": 0.1, "momentum": 0.9}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "hidden": [20]},
    "cnn": {"kind": "cnn", "channels": [4], "hidden": 8},
}


def losses(result: TrialResult) -> list[float | None]:
    return [row.train_loss for row in result.rows if isinstance(row, CurveRow)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sam", [False, True], ids=["sgd", "sam"])
def test_training_equals_plain_training_under_autocast(model: str, sam: bool, mnist: Dataset) -> None:
    """Covers one and two evaluations per step; the hand-written float32 gradients must not be used."""
    settings = {"target": "sam", "base": SGD} if sam else SGD
    suite = small_suite({"it": settings}, model=MODELS[model], seeds=2, **BF16)
    results = train_suite(suite, mnist)
    assert {trial_row(result).gradients for result in results} <= {"member by member", "torch.func"}
    assert same_bits(train_suite(suite, mnist, only=1)[0], results[1])
    make = partial(Sam, base=SGD) if sam else partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    network = train_plain(suite, mnist, make, autocast=True)
    exact = train_plain(suite, mnist, make)
    assert results[0].weights is not None
    for name, weight in network.state_dict().items():
        found = results[0].weights[name]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, weight, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, exact.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["kfac", "rank-penalty", "hessian-free"])
def test_optimizers_that_read_forward_passes_compute_in_float32(name: str, mnist: Dataset) -> None:
    """Losses stay close to float32 because statistics, penalties and curvature products are computed in float32."""
    own: dict[str, Any] = {"rank-penalty": {"base": SGD, "strength": 0.03}}.get(name, {})
    exact, rounded = (
        train_suite(small_suite({"it": {"target": name, **own}}, seeds=1, **how), mnist)[0] for how in (FEW, BF16)
    )
    assert trial_row(rounded).status == "ok"
    assert losses(rounded) != losses(exact)
    assert losses(rounded) == pytest.approx(losses(exact), rel=0.1)


@pytest.mark.usefixtures("one_thread")
def test_a_transformer_alone_equals_the_transformer_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers attention; with all members in one call, as on an accelerator, losses are nearly the same."""
    suite, text = text_suite({"target": "adamw", "lr": [3e-3, 1e-2]}, GPT, precision="bfloat16"), small_text()
    results = train_suite(suite, text)
    assert same_bits(train_suite(suite, text, only=1)[0], results[1])
    monkeypatch.setattr(Execution, "on", staticmethod(lambda device: Execution(True, None)))
    together = train_suite(suite, text)
    assert {trial_row(result).gradients for result in together} == {"torch.func"}
    for one, other in zip(results, together, strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-2)
