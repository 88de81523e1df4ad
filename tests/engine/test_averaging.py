"""`protocol.weight_averaging`: PyTorch's `AveragedModel` is measured; training continues from the plain weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optbench.cli import main
from optbench.data import Dataset
from optbench.engine import TrialResult
from optbench.store.tables import AccuracyRow, CurveRow
from optbench.suite import dump_suite
from tests.conftest import PERMUTED, same_bits, small_suite, train_suite, trial_row
from tests.engine.test_interim import cut_and_whole
from tests.plain_recipe import train_plain

DECAY = 0.9
EMA = {"kind": "ema", "decay": DECAY}
SHORT: dict[str, Any] = {"early_stopping": None, "max_epochs": 1, "train_examples": 256, "test_examples": 50}
SGD = {"target": "sgd", "lr": 0.1, "momentum": 0.9}


def weights(result: TrialResult) -> dict[str, torch.Tensor]:
    assert result.weights is not None
    return result.weights


@pytest.mark.parametrize("target", ["sgd", "torch.optim:SGD"])
def test_the_stored_weights_equal_the_averaged_model_of_plain_training(target: str, mnist: Dataset) -> None:
    """Covers two tasks, the elementwise lane and one instance per member; training itself is unchanged."""
    suite = small_suite({"it": SGD | {"target": target}}, seeds=2, weight_averaging=EMA, **SHORT)
    results = train_suite(suite, mnist)
    averaged: list[AveragedModel] = []

    def update(network: nn.Module) -> None:
        if not averaged:
            averaged.append(AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY)))
        averaged[0].update_parameters(network)

    trained = train_plain(suite, mnist, partial(torch.optim.SGD, lr=0.1, momentum=0.9), after_step=update)
    for name, weight in averaged[0].module.state_dict().items():
        torch.testing.assert_close(weights(results[0])[name], weight, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(weight, trained.state_dict()[name], atol=1e-4)
    plain = train_suite(small_suite({"it": SGD | {"target": target}}, seeds=2, **SHORT), mnist)
    for one, other in zip(results, plain, strict=True):
        a, b = ([row.train_loss for row in result.rows if isinstance(row, CurveRow)] for result in (one, other))
        assert a == b, "training losses are of the plain weights"
        a, b = ([row.accuracy for row in result.rows if isinstance(row, AccuracyRow)] for result in (one, other))
        assert a != b, "evaluations are of the average"


class Picky(torch.optim.SGD):
    """An optimizer whose constructor raises for a large learning rate, after other members have been created."""

    def __init__(self, params: Any, lr: float) -> None:
        if lr > 0.3:
            raise ValueError("refused")
        super().__init__(params, lr=lr, momentum=0.9)


def test_a_member_that_fails_at_the_start_leaves_the_averages_of_others_unchanged(mnist: Dataset) -> None:
    optimizer = {"target": f"{__name__}:Picky", "lr": [0.1, 0.5]}
    suite = small_suite({"it": optimizer}, seeds=1, weight_averaging=EMA, **SHORT)
    one, refused = train_suite(suite, mnist)
    assert [trial_row(result).status for result in (one, refused)] == ["ok", "failed"]
    assert same_bits(one, train_suite(suite, mnist, only=0)[0])


def test_averages_do_not_depend_on_stopping_resuming_or_companions(mnist: Dataset) -> None:
    """Members stop at different steps, so stacks shrink; both averaged and plain weights are restored."""
    over = {
        "adam": {"target": "adamw", "lr": [0.02, 1e-3]},
        "fresh": {"target": "fresh-network", "base": SGD},
        "shrunk": {"target": "shrink-and-perturb", "base": SGD},
    }
    suite = small_suite(over, tasks=PERMUTED | {"count": 3}, seeds=2, weight_averaging=EMA, evaluate_every=0.2)
    results = train_suite(suite, mnist)
    assert len({trial_row(result).steps for result in results[:4]}) > 1
    for i in (1, 2, 5, 7):
        assert same_bits(train_suite(suite, mnist, only=i)[0], results[i])
    for _, whole, again in cut_and_whole(suite, mnist, cut_after=2):
        assert all(map(same_bits, whole, again))


def test_an_optimizer_that_averages_weights_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytorch_optimizer")
    free = {"free": {"target": "schedule-free"}}
    (tmp_path / "s.yaml").write_text(dump_suite(small_suite(free, weight_averaging=EMA, **SHORT)))
    assert main(["run", str(tmp_path / "s.yaml"), "--runs-dir", str(tmp_path), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "optimizers.free default: protocol.weight_averaging: expected an optimizer that is measured at" in said
