"""`protocol.schedule` scales learning rates like PyTorch's schedulers, in every lane, for optimizers that take one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from optbench.engine.lanes import LaneMember, build_lane
from optbench.engine.randomness import draw_seed, seed_all
from optbench.engine.rates import RateCurve, factor
from optbench.engine.recording import Recordings
from optbench.engine.stack import Layout
from optbench.optimizers.make import Row, Together, maker
from optbench.optimizers.registry import OPTIMIZERS, complete, find
from optbench.suite.rate_schedule import RateSchedule

KINDS = ("constant", "linear", "cosine", "wsd")
TAKING = [name for name, spec in OPTIMIZERS.items() if spec.takes_schedule and spec.lane != "its base's"]


def schedule(**settings: Any) -> RateSchedule:
    return RateSchedule.model_validate(settings)


def chain(given: RateSchedule, steps: int, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule from PyTorch's schedulers."""
    warmup = min(round(given.warmup * steps), steps - 1)
    left = steps - warmup
    parts: list[LRScheduler] = []
    ends = []
    if warmup:
        parts.append(LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup))
        ends.append(warmup)
    if given.kind == "constant":
        parts.append(ConstantLR(optimizer, 1.0))
    elif given.kind == "linear":
        parts.append(LinearLR(optimizer, 1.0, given.floor, left))
    elif given.kind == "cosine":
        lr = optimizer.param_groups[0]["initial_lr"] if warmup else optimizer.param_groups[0]["lr"]
        parts.append(CosineAnnealingLR(optimizer, left, given.floor * lr))
    else:
        decay = min(max(round(given.decay * steps), 1), left)
        if decay < left:
            parts.append(ConstantLR(optimizer, 1.0))
            ends.append(steps - decay)
        parts.append(LinearLR(optimizer, 1.0, given.floor, decay))
    return SequentialLR(optimizer, parts, ends)


CHAINED = pytest.mark.filterwarnings("ignore:The epoch parameter", "ignore:Detected call of `lr_scheduler")


@CHAINED
@pytest.mark.parametrize("kind", KINDS)
def test_factors_equal_those_of_pytorchs_schedulers(kind: str) -> None:
    floors = [0.0] if kind == "constant" else [0.0, 0.1, 1.0]
    decays = [0.01, 0.2, 0.5] if kind == "wsd" else [None]
    for steps, warmup, floor, decay in itertools.product([1, 2, 7, 40], [0.0, 0.05, 0.5], floors, decays):
        given = {"kind": kind, "warmup": warmup, "floor": floor, "decay": decay}
        keys = {"constant": 2, "wsd": 4}.get(kind, 3)
        it = schedule(**dict(list(given.items())[:keys]))
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = chain(it, steps, optimizer)
        for step in range(steps):
            wanted = optimizer.param_groups[0]["lr"] / 0.3
            assert factor(it, steps, step) == pytest.approx(wanted, rel=1e-9), (it, steps, step)
            assert 0 < factor(it, steps, step) <= 1
            scheduler.step()
        assert factor(it, steps, steps + 5) == factor(it, steps, steps - 1)


class Problem:
    """A classifier with three inputs, and a batch for each step."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(3)
        self.network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, 0.0, 0.5, generator=draws)
        self.inputs = torch.randn(12, 8, 3, generator=draws)
        self.targets = torch.randint(3, (12, 8), generator=draws)
        self.step = 0

    def loss(self, network: nn.Module, weights: dict[str, Tensor] | None = None) -> Tensor:
        inputs = self.inputs[self.step]
        logits = network(inputs) if weights is None else functional_call(network, weights, (inputs,))
        return nn.functional.cross_entropy(logits, self.targets[self.step])


SETTINGS: dict[str, dict[str, Any]] = {
    "scalable-shampoo": {"lr": 0.1},
    "switch": {"at": 3},
    "lion": {"lr": 1e-2},
    "lbfgs": {"lr": 0.3, "line_search_fn": None},
}
COSINE = schedule(kind="cosine", warmup=0.3, floor=0.05)


def on_the_lane(name: str, settings: dict[str, Any], curves: list[RateCurve | None], steps: int) -> list[list[Tensor]]:
    """Train members with these schedules for some steps in the optimizer's lane; return their parameters."""
    problem, spec = Problem(), find(name)
    layout = Layout.of({key: p.shape for key, p in problem.network.named_parameters()})
    start = layout.pack({key: p.detach() for key, p in problem.network.named_parameters()})
    weights = torch.stack([start] * len(curves))
    grads = torch.zeros_like(weights)
    members = [LaneMember(settings, None, torch.Generator().manual_seed(1), steps, 96, curve=curve) for curve in curves]
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).to("meta")
    lane = build_lane(spec, members, network, weights, grads, layout, Recordings(None), begin=True)
    for step in range(steps):
        problem.step = step
        for row, grad in zip(weights, grads, strict=True):
            views = {key: view.detach().requires_grad_() for key, view in layout.views(row).items()}
            found = torch.autograd.grad(problem.loss(problem.network, views), list(views.values()))
            grad.copy_(layout.pack(dict(zip(views, found, strict=True))))
        assert lane.step(lambda i, its, given: problem.loss(its), step) == {}
        for i, curve in enumerate(curves):
            if "lr" in settings:
                wanted = settings["lr"] * (1.0 if curve is None else curve.factor(step))
                assert lane.rate(i) == pytest.approx(wanted, rel=1e-12)
    return [list(layout.unpack(row).values()) for row in weights]


def with_rates(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizers whose parameter groups have a learning rate, including wrapped ones."""
    inside = [getattr(optimizer, name, None) for name in ("base", "first", "then", "inner")]
    inside += optimizer.parts if isinstance(optimizer, Together) else []
    for each in inside:
        if isinstance(each, torch.optim.Optimizer):
            yield from with_rates(each)
    if isinstance(optimizer, Row) or "lr" in optimizer.param_groups[0]:
        yield optimizer


def plainly(name: str, settings: dict[str, Any], steps: int, until: int) -> list[Tensor]:
    """Train for some steps with the plain optimizer and PyTorch's scheduler; return the parameters."""
    problem, spec = Problem(), find(name)
    parameters = list(problem.network.parameters())
    noise = torch.Generator().manual_seed(1)
    given = {"model": problem.network, "generator": noise, "total_steps": until, "examples": 96}
    with torch.random.fork_rng():
        seed_all(0, torch.device("cpu"))  # draw in the constructor what it draws in the lane
        optimizer = maker(spec, settings, given)(parameters)
        schedulers = [chain(COSINE, steps, each) for each in with_rates(optimizer)]

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(problem.network)
            loss.backward(create_graph="create_graph" in spec.needs)  # type: ignore[no-untyped-call]
            return loss

        for problem.step in range(until):
            if "random" in spec.needs:
                seed_all(draw_seed(noise), torch.device("cpu"))
            closure()
            if "closure" in spec.needs:
                optimizer.step(closure)  # type: ignore[arg-type]  # torch's stubs say float
            else:
                optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
    return [p.detach() for p in parameters]


@CHAINED
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph", "ignore:Shampoo. small_side")
@pytest.mark.parametrize("name", TAKING)
def test_a_lane_with_a_schedule_equals_the_optimizer_with_pytorchs_scheduler(name: str) -> None:
    """One of three members has a different schedule, as when tasks differ in length."""
    settings = complete(name, SETTINGS.get(name, {}))
    until, lengths = 7, (7, 9)
    *scheduled, constant = on_the_lane(name, settings, [*(RateCurve(COSINE, n) for n in lengths), None], until)
    start = list(Problem().network.parameters())
    for steps, found in zip(lengths, scheduled, strict=True):
        wanted = plainly(name, settings, steps, until)
        for before, own, plain in zip(start, found, wanted, strict=True):
            moved = (plain - before).norm()
            assert moved > 0
            assert (own - plain).norm() < 1e-4 * moved
    assert all(
        (own - other).norm() > 1e-3 * (own - before).norm()
        for before, own, other in zip(start, scheduled[0], constant, strict=True)
    )
