"""`protocol.clip_norm` applies `torch.nn.utils.clip_grad_norm_` to each member separately, in every lane."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from optbench.cli import main
from optbench.data import Dataset
from optbench.engine.clipping import Clip
from optbench.engine.recording import WARM_UP, Recordings
from optbench.optimizers.sam import Sam
from optbench.optimizers.shampoo import Shampoo
from optbench.suite import dump_suite, load_suite, suite_hash
from tests.conftest import same_bits, small_suite, train_suite
from tests.plain_recipe import Make, train_plain
from tests.tape import tape

BOUND = 0.8
SHORT: dict[str, Any] = {"early_stopping": None, "max_epochs": 1, "train_examples": 256, "test_examples": 50}
SGD = {"target": "sgd", "lr": 0.1, "momentum": 0.9}


@pytest.mark.parametrize("record", [None, tape], ids=["executed", "replayed"])
def test_each_member_of_a_stack_is_clipped_separately(record: Any) -> None:
    draws = torch.Generator().manual_seed(0)
    given = torch.randn(3, 64, generator=draws) * torch.tensor([[1.0], [1e-3], [0.0]])
    grads = torch.empty_like(given)
    recordings = Recordings(record)
    clip = Clip(BOUND, grads, recordings)
    for _ in range(WARM_UP + 2):
        grads.copy_(given)
        clip()
    assert not recordings.refused
    for row, before in zip(grads, given, strict=True):
        parameter = nn.Parameter(torch.zeros(64))
        parameter.grad = before.clone()
        clip_grad_norm_([parameter], BOUND)
        assert torch.equal(row, parameter.grad)
        alone = before.clone()[None]
        Clip(BOUND, alone, Recordings(None))()
        assert torch.equal(row, alone[0])
    assert torch.equal(grads[1:], given[1:]), "gradients below the bound keep their bits"


CASES: dict[str, tuple[dict[str, Any], Make]] = {
    "elementwise": (SGD, partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "batched": (
        {"target": "shampoo", "lr": 0.05, "epsilon": 1e-3, "small_side": 10, "max_side": 100},
        partial(Shampoo, lr=0.05, epsilon=1e-3, small_side=10, max_side=100),
    ),
    "per member": (SGD | {"target": "torch.optim:SGD"}, partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "two evaluations": ({"target": "sam", "base": SGD}, partial(Sam, base=SGD)),
    "a closure": (
        {"target": "torch.optim:LBFGS", "needs": "closure", "lr": 0.1, "max_iter": 3},
        partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
    ),
}


@pytest.mark.filterwarnings("ignore:Shampoo. small_side")
@pytest.mark.parametrize("name", CASES)
def test_every_lane_clips_like_a_plain_loop(name: str, mnist: Dataset) -> None:
    settings, make = CASES[name]
    suite = small_suite({"it": settings}, seeds=2, clip_norm=BOUND, **SHORT)
    results = train_suite(suite, mnist)
    assert same_bits(train_suite(suite, mnist, only=1)[0], results[1])
    wanted = train_plain(suite, mnist, make, clip_norm=BOUND)
    assert results[0].weights is not None
    for key, weight in wanted.state_dict().items():
        torch.testing.assert_close(results[0].weights[key], weight, rtol=1e-3, atol=1e-5)
    free = train_suite(small_suite({"it": settings}, seeds=2, **SHORT), mnist, only=0)[0]
    assert free.weights is not None
    assert any(not torch.allclose(free.weights[k], w, atol=1e-4) for k, w in wanted.state_dict().items())


class Curved(torch.optim.SGD):
    """An optimizer that differentiates its gradients a second time."""

    seen: ClassVar[list[tuple[float, list[torch.Tensor]]]] = []

    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters]
        norm = torch.cat([grad.detach().flatten() for grad in grads]).norm().item()
        products = torch.autograd.grad(grads, parameters, [torch.ones_like(p) for p in parameters], retain_graph=True)
        self.seen.append((norm, [product.detach() for product in products]))
        return super().step()


def test_clipping_scales_the_values_of_differentiable_gradients_only(mnist: Dataset) -> None:
    """Values are clipped, but the Hessian product, compared at the initial weights, is that of the unclipped loss."""
    own = {"target": f"{__name__}:Curved", "needs": "create_graph", "lr": 0.1}
    tanh = {"kind": "mlp", "hidden": [20], "activation": "tanh"}
    firsts = []
    for bound in (None, 0.1):
        Curved.seen.clear()
        train_suite(small_suite({"it": own}, model=tanh, seeds=1, clip_norm=bound, **SHORT), mnist)
        norms = [norm for norm, _ in Curved.seen]
        assert norms[0] > 0.2 if bound is None else max(norms) <= 0.1001
        firsts.append(Curved.seen[0][1])
    assert all(map(torch.equal, *firsts))


class OwnBackward(torch.optim.SGD):
    """An optimizer that takes the differentiable loss."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        loss.backward()
        super().step()
        return loss


def test_an_optimizer_that_takes_the_loss_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"target": f"{__name__}:OwnBackward", "needs": "loss", "lr": 0.1}
    (tmp_path / "s.yaml").write_text(dump_suite(small_suite({"own": own, "sgd": SGD}, clip_norm=BOUND, **SHORT)))
    assert main(["run", str(tmp_path / "s.yaml"), "--runs-dir", str(tmp_path), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "optimizers.own default: protocol.clip_norm: expected an optimizer that steps from gradients" in said
    assert "optimizers.sgd" not in said


def test_a_suite_without_clipping_keeps_its_hash(tmp_path: Path) -> None:
    plain, clipped = (small_suite({"it": SGD}, clip_norm=bound) for bound in (None, 1.0))
    assert suite_hash(plain) != suite_hash(clipped)
    text = dump_suite(plain)
    (tmp_path / "s.yaml").write_text("".join(line for line in text.splitlines(True) if "clip_norm" not in line))
    assert suite_hash(load_suite(tmp_path / "s.yaml")) == suite_hash(plain)
