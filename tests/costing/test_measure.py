"""Measuring cost: estimates against the actual state of optimizers, time by part, and the cost of refreshes."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import record_function

from optbench.costing.contenders import CONTENDERS, Contender, chosen, sparse
from optbench.costing.estimate import Footprint, estimate
from optbench.costing.job import CostJob
from optbench.costing.measure import _measured, _timing, make
from optbench.costing.sizes import Size
from optbench.costing.stopwatch import RegionTimer
from optbench.errors import OptbenchError
from optbench.optimizers.make import resolve_spec
from optbench.optimizers.regions import ROOTS, STATISTICS
from optbench.optimizers.registry import complete, find

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:Shampoo. small_side")]
MICRO = {
    "gpt": Size("micro", "", "gpt", 1, 8, 2, 16, 8, 2),
    "bert": Size("micro", "", "bert", 1, 8, 2, 300, 8, 4, masked=0.25),
}


def measured(one: Contender, size: Size, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Measure an optimizer in this process; return the result and the estimate."""
    settings = complete(one.target, one.settings)
    spec = resolve_spec(find(one.target), settings)
    job = CostJob(one.name, one.target, settings, "micro", size.batch, (1,), "cpu", 4, 60.0, 1 << 40)
    told = estimate(size, lambda model: make(spec, settings, model, 4), users=spec.source == "yours", planned=True)
    started, found = _measured(dataclasses.replace(job, **changes), spec, settings, size)
    assert started["status"] == "started"
    assert started["state"] == found["state"]
    return found, told


@pytest.mark.parametrize("family", MICRO)
@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "pytorch-optimizer-shampoo"])
def test_the_estimated_state_equals_the_actual_state(name: str, family: str) -> None:
    found, told = measured(CONTENDERS[name], MICRO[family])
    assert told.state == found["state"]
    assert (found["state"] == 0) == (name in ("sgd", "power-sgd-2", "power-sgd-3"))
    assert found["note"] == ""
    (timing,) = found["timings"]
    assert timing.steps == 4
    assert timing.after == 1
    assert timing.gradient > 0
    assert timing.step > 0
    assert timing.low <= timing.ordinary <= timing.high
    assert found["split"] == name.startswith(("shampoo", "kfac"))
    every = {"soap": 10, "kfac": 20, "scalable-shampoo": 50, "shampoo-512-every-20": 20}
    assert timing.every == every.get(name)
    assert (timing.renewed is not None) == (name in ("shampoo", "shampoo-512", "shampoo-1024"))


def test_parameters_are_assigned_to_the_parts_of_an_optimizer() -> None:
    held = {}
    for one in (
        *chosen(["adamw", "muon", "soap"]),
        Contender("shampoo", "shampoo", {"block_size": 6, "max_side": 100}),
    ):
        found, _ = measured(one, MICRO["bert"])
        held[one.name] = {h.kind: (h.bytes / h.weights, h.factors) for h in found["holdings"]}
    assert held["adamw"]["matrices"][0] == pytest.approx(8, rel=0.05)
    assert held["muon"]["embeddings, heads"][0] == pytest.approx(8, rel=0.05), "by AdamW"
    assert held["muon"]["matrices"][0] == pytest.approx(4, rel=0.05), "one momentum"
    assert held["soap"]["embeddings, heads"] == (pytest.approx(8, rel=0.05), ()), "by Adam"
    assert held["soap"]["matrices"][1] == (32, 8)
    assert held["soap"]["vectors"][1] == ()
    # The vocabulary of 300 exceeds Shampoo's limit.
    assert held["shampoo"]["embeddings, heads"][1] == held["shampoo"]["matrices"][1] == (6, 2)


def test_a_footprint_is_the_peak_of_live_memory() -> None:
    with Footprint() as footprint:
        a = torch.zeros(1000, device="meta")
        b = a + 1
        view = b.view(10, 100)
        del b
        assert footprint.live == 8000, "a view keeps its storage"
        del view
        assert footprint.live == 4000
        a.mul_(2)
    assert (footprint.live, footprint.peak) == (4000, 8000)
    leaf = torch.zeros(500, device="meta", requires_grad=True)
    with Footprint() as footprint:
        y = leaf.exp()
        z = y.sin()
        del y
        assert footprint.live == 4000, "tensors saved for the backward pass"
        z.sum().backward()
        del z
    assert leaf.grad is not None
    assert footprint.live == 2000


class Marked(torch.optim.Optimizer):
    """A user's optimizer that marks parts of its step with the regions of PyTorch's profiler."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        with record_function("statistics"):
            wait(3)
            with record_function("of something else"), ROOTS:
                wait(2)
        wait(1)


def wait(ms: float) -> None:
    until = time.perf_counter() + ms / 1000
    while time.perf_counter() < until:
        pass


def test_time_is_attributed_to_the_innermost_region() -> None:
    watch = RegionTimer("wall")
    optimizer = Marked([nn.Parameter(torch.zeros(1))])
    with watch.step() as seconds:
        with watch.gradient():
            wait(5)
        optimizer.step()
    for name, least in {"gradient": 5, "statistics": 3, "roots": 2, "update": 1}.items():
        assert seconds[name] >= least / 1000, name
    begun = time.perf_counter()
    with watch.step() as again, STATISTICS:
        wait(4)
    assert sum(again.values()) <= time.perf_counter() - begun
    before = dict(again)
    optimizer.step()  # outside the block
    assert again == before


def test_refreshes_are_weighted_by_their_frequency() -> None:
    parts = {"gradient": 5.0, "statistics": 0.5, "roots": 0.0, "update": 0.5}
    steps = [parts, parts | {"roots": 10.0}] * 3
    found = _timing(1, "wall", 0, steps, 10, None)
    assert (found.ordinary, found.refresh, found.every) == (1.0, 11.0, 10)
    assert (found.step, found.roots, found.gradient) == pytest.approx((2.0, 1.0, 5.0))
    # Of two consecutive steps, the one that refreshes is detected.
    assert _timing(1, "wall", 0, steps[1:-1], 10, None).step == pytest.approx(2.0)
    by_need = _timing(1, "wall", 0, steps, None, 0.5)
    assert (by_need.step, by_need.refresh, by_need.high) == (6.0, None, 11.0)


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["adamm"], [], "unknown optimizer 'adamm'; did you mean 'adam'?"),
        (["adam", "adam"], [], "'adam' is named twice"),
        (["a b=adam"], [], "expected a name of letters"),
        (["adam", "sgd"], ["lr=1"], "expected NAME.key=value"),
        (["adam", "sgd"], ["adan.lr=1"], "did you mean 'adam'?"),
        (["adam"], ["lr=-1"], "expected a number above 0"),
        (["adam"], ["adam.rate=1"], "unknown hyper-parameter 'rate' of adam"),
        (["adam"], ["adam.=1"], "empty part"),
    ],
)
def test_mistakes_are_refused(words: list[str], settings: list[str], message: str) -> None:
    with pytest.raises(OptbenchError) as caught:
        chosen(words, settings)
    assert message in str(caught.value)


def test_contenders_get_names_and_settings() -> None:
    assert [one.name for one in chosen([])] == list(CONTENDERS)
    a, b, c = chosen(
        ["x.y=shampoo-512", "./mine.py:Mine", "power=powerpropagation"],
        ["x.y.lr=0.5", "Mine.depth=2", "power.base.target=adam", "power.base.lr=0.1"],
    )
    assert (a.name, a.target, dict(a.settings)) == ("x.y", "shampoo", {"block_size": 512, "lr": 0.5})
    assert (b.name, b.target, dict(b.settings)) == ("Mine", "./mine.py:Mine", {"depth": 2})
    assert c.settings == {"base": {"target": "adam", "lr": 0.1}}
    (one,) = chosen(["adam"], ["lr=0.5"])
    assert one.settings == {"lr": 0.5}


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_twins_follow_the_gradient_flow_of_powerpropagation(alpha: float) -> None:
    reparameterised, twin = sparse(alpha, lr=0.2)
    assert reparameterised.twin == twin.name
    lr, beta, scale = (twin.settings[name] for name in ("lr", "beta", "bias_scale"))
    # w = φ|φ|^(α-1): dw/dt = -lr (dw/dφ)² g = -lr α² |w|^(2 - 2/α) g; biases move at lr.
    phi = 0.7
    w, slope = phi**alpha, alpha * phi ** (alpha - 1)
    assert lr * w**beta == pytest.approx(0.2 * slope**2)
    assert lr * scale == pytest.approx(0.2)


def test_an_optimizer_with_a_closure_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import torch\n"
        "class Twice(torch.optim.SGD):\n"
        "    def step(self, closure):\n"
        "        closure(); return super().step(closure)\n"
    )
    (plain,), (twice,) = chosen(["sgd"]), chosen(["./mine.py:Twice"], ["lr=0.001"])
    one, _ = measured(plain, MICRO["gpt"], steps=20)
    three, told = measured(twice, MICRO["gpt"], steps=20)
    assert told.state == three["state"] == 0
    ratio = three["timings"][0].gradient / one["timings"][0].gradient
    assert 2 < ratio < 4.5, "evaluations within a step count as gradients"
    assert not math.isnan(ratio)
